"""The servers in the benchmark, their commands, and the targets. All use the same interpreter and httptools."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PACKAGES = ("uvicorn", "uvloop", "httptools", "granian", "waitress", "cheroot", "gunicorn")

KEEP_ALIVE = "keep-alive"
PER_REQUEST = "a connection per request"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server in the benchmark.

    Attributes:
        name: its name; for ours, the name of the model.
        modes: the modes in which it is measured.
        command: returns its argv for an interpreter and a port.
    """

    name: str
    modes: tuple[str, ...]
    command: Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True)
class Target:
    """A target: the throughput of one server must be at least `factor` times that of another."""

    server: str
    against: str
    factor: float
    mode: str = KEEP_ALIVE


# As in the root filesystem (isolated, without site), but with the environment's httptools instead of Debian's.
_LEAN = """
import sys
version = "python%d.%d" % sys.version_info[:2]
sys.path[:0] = [{root!r}, sys.argv[1].rpartition("/bin/")[0] + "/lib/" + version + "/site-packages"]
from workloads.command import main
sys.exit(main(sys.argv[2:]))
"""


def _ours(model: str, *modes: str) -> Contestant:
    script = _LEAN.format(root=str(ROOT))
    return Contestant(
        model,
        modes or (KEEP_ALIVE,),
        lambda python, port: [python, "-I", "-S", "-c", script, python, model, "--port", str(port)],
    )


def _module(name: str, *words: str, modes: tuple[str, ...] = (KEEP_ALIVE,)) -> Contestant:
    """Run a module as `python -m`; PORT in an argument stands for the port."""
    return Contestant(
        name, modes, lambda python, port: [python, "-m", *(word.replace("PORT", str(port)) for word in words)]
    )


def _script(name: str, *modes: str) -> Contestant:
    return Contestant(
        name, modes or (KEEP_ALIVE,), lambda python, port: [python, str(HERE / "counterparts.py"), name, str(port)]
    )


_GUNICORN = ("gunicorn", "--bind", "127.0.0.1:PORT", "--backlog", "4096", "--workers", "1", "--chdir", str(HERE))

CONTESTANTS = (
    _ours("eventloop", KEEP_ALIVE, PER_REQUEST),
    _ours("reactor"),
    _ours("callback"),
    _ours("coroutine"),
    _ours("thread", KEEP_ALIVE, PER_REQUEST),
    _ours("fork", KEEP_ALIVE, PER_REQUEST),
    _ours("blocking"),
    _ours("sequential"),
    _module(
        "uvicorn", "uvicorn", "--app-dir", str(HERE), "--port", "PORT", "--loop", "uvloop", "--http", "httptools",
        "--no-access-log", "--log-level", "warning", "--backlog", "4096", "counterparts:asgi",
        modes=(KEEP_ALIVE, PER_REQUEST),
    ),
    _module(
        "granian", "granian", "--working-dir", str(HERE), "--interface", "asgi", "--port", "PORT", "--loop", "uvloop",
        "--workers", "1", "--http", "1", "--no-ws", "--log-level", "warning", "--backlog", "4096", "counterparts:asgi",
    ),
    _script("waitress"),
    _script("cheroot"),
    _module("gunicorn gthread", *_GUNICORN, "--worker-class", "gthread", "--threads", "64", "counterparts:wsgi"),
    _module("gunicorn sync", *_GUNICORN, "--worker-class", "sync", "counterparts:wsgi", modes=(PER_REQUEST,)),
    _script("ThreadingHTTPServer"),
    _script("ForkingHTTPServer", KEEP_ALIVE, PER_REQUEST),
)  # fmt: skip

TARGETS = (
    Target("eventloop", "uvicorn", 1.5),
    Target("eventloop", "granian", 1.2),
    Target("coroutine", "uvicorn", 1.3),
    Target("coroutine", "eventloop", 0.85),
    Target("callback", "uvicorn", 1.3),
    Target("callback", "eventloop", 0.85),
    Target("reactor", "waitress", 4),
    Target("reactor", "eventloop", 0.8),
    Target("thread", "ThreadingHTTPServer", 1.5),
    Target("thread", "cheroot", 5),
    Target("thread", "gunicorn gthread", 5),
    Target("fork", "ForkingHTTPServer", 4, PER_REQUEST),
    Target("fork", "gunicorn sync", 0, PER_REQUEST),
)


@dataclass(frozen=True, slots=True)
class Bound:
    """A target: an upper bound of a server's p99 at saturation, in milliseconds."""

    server: str
    p99: float
    mode: str = KEEP_ALIVE


BOUNDS = (Bound("thread", 10),)

LATENCY_PAIRS = (
    ("eventloop", "uvicorn"),
    ("coroutine", "uvicorn"),
    ("callback", "uvicorn"),
    ("reactor", "waitress"),
    ("thread", "ThreadingHTTPServer"),
    ("fork", "ForkingHTTPServer"),
    ("blocking", "gunicorn gthread"),
)
"""Pairs whose p99 is compared, at half of the counterpart's saturation."""


def environment(folder: Path, say: Callable[[str], None]) -> str:
    """Return the interpreter of a virtual environment with the counterparts; create it if it is missing.

    Raises:
        subprocess.CalledProcessError: pip failed; its messages are on standard error.
    """
    python = folder / "bin" / "python"
    check = [str(python), "-c", "import " + ", ".join(PACKAGES)]
    if not python.exists() or subprocess.run(check, capture_output=True, check=False).returncode:
        say(f"creating {folder} with {', '.join(PACKAGES)}")
        base = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        subprocess.run([base, "-m", "venv", str(folder)], check=True, stdout=sys.stderr)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
    return str(python)
