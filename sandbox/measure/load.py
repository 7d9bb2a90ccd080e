"""Saturate a server with wrk, which runs in the generator's network namespace, on a separate CPU, for a limited time.

wrk keeps a fixed number of connections, and sends the next request on each as soon as the reply has arrived (a closed
loop). This finds the maximum throughput. The latency is then mostly time in a queue: by Little's law, its mean is
connections ÷ throughput for any server. It can be compared between servers, but at low load it would be lower.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sandbox.errors import EngineError, UnavailableError
from sandbox.network import lab
from sandbox.results import PERCENTILES, Load
from sandbox.state import codec

SCRIPT = Path(__file__).with_name("summary.lua")
CONNECTIONS = 64
REQUEST_TIMEOUT = 5
"""Seconds after which wrk counts a request as timed out."""
GRACE = 10.0
"""Seconds beyond the duration of the load after which wrk is killed."""
ERRORS = ("connect", "read", "write", "timeout", "status")
MAX_BODY = 1024 * 1024


def generator() -> str:
    """Return the path of the load generator.

    Raises:
        UnavailableError: wrk is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise UnavailableError(
            "the load generator wrk is not installed", "apt-get install wrk, or: sandbox doctor --fix"
        )
    return found


def saturate(
    url: str,
    *,
    duration: int,
    connections: int,
    cpu: int,
    command: Callable[[Sequence[str]], list[str]] = lab.generator_command,
) -> Load:
    """Saturate a server.

    Args:
        url: URL of the page to request.
        duration: seconds, at least 1.
        connections: number of connections to keep open.
        cpu: the CPU on which the generator runs.
        command: makes the command line; by default it runs in the generator's network namespace.

    Raises:
        UnavailableError: wrk is not installed.
        EngineError: wrk failed, was killed because it took too long, or got no reply at all.
    """
    argv = [generator(), "--threads=1", f"--connections={connections}", f"--duration={duration}s"]
    argv += [f"--timeout={REQUEST_TIMEOUT}s", f"--script={SCRIPT}", url]
    with _pinned(cpu):  # a child inherits the affinity of the thread that starts it (sched_setaffinity(2))
        process = subprocess.Popen(
            command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    try:
        out, err = process.communicate(timeout=duration + GRACE)
    except subprocess.TimeoutExpired:
        raise EngineError(f"wrk did not end within {duration + GRACE:.0f} s and was killed") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise EngineError(f"wrk failed ({process.returncode}): {_last_line(err or out)}")
    return parse(out)


def parse(output: bytes) -> Load:
    """Parse the last line of wrk's output, which summary.lua wrote.

    Raises:
        EngineError: there is no such line, or wrk got no reply.
    """
    try:
        raw = codec.decode(dict[str, int], codec.parse(_last_line(output)), "summary")
        duration = raw["duration_us"] / 1e6
        load = Load(
            requests=raw["requests"],
            duration_s=duration,
            requests_per_s=raw["requests"] / duration,
            received_bytes=raw["bytes"],
            latency_s={name: raw[name] / 1e6 for name in PERCENTILES},
            errors={name: raw[name] for name in ERRORS},
        )
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise EngineError(f"wrk gave no summary: {error!r}") from None
    if not load.requests:
        raise EngineError("wrk got no reply: " + _named(load.errors))
    return load


def host_socket(timeout: float) -> socket.socket:
    """Create a TCP socket in the host's own network namespace, with `timeout` in seconds for each operation."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(timeout)
    return made


def fetch(
    host: str,
    port: int,
    path: str,
    timeout: float = 10.0,
    *,
    connect: Callable[[float], socket.socket] = lab.generator_socket,
) -> tuple[int, bytes]:
    """Request a page. Returns the status and the body.

    Args:
        host: the address.
        port: the port.
        path: the path of the page.
        timeout: seconds for each operation.
        connect: makes the socket; by default in the generator's network namespace.

    Raises:
        EngineError: there is no reply, or it is not HTTP.
    """
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.sock = connect(timeout)
        connection.sock.connect((host, port))
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(MAX_BODY)
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"no reply from http://{host}:{port}{path}: {error}") from error
    finally:
        connection.close()


def endpoint(url: str) -> tuple[str, int]:
    """Return the host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _named(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {name} errors" for name, count in errors.items() if count) or "no errors either"


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
