"""Directories with a sandbox.toml, commands, and mounts: the same at every level, or refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import SpecError
from sandbox.isolation import LEVELS
from sandbox.phases import Status
from sandbox.request import resolve
from sandbox.request.resolve import Options
from sandbox.spec import MIB
from sandbox.state import paths
from tests import leaks
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.environ['GREETING']} {os.getcwd()} {open('static/note').read()}".encode()
        self.send_response(200 if self.path in ("/", "/ready") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer((sys.argv[1], 8000), Handler).serve_forever()
"""
TOML = """
command = ["python3", "server.py", "@listen@"]
port = 8000
ready_path = "/ready"
[env]
GREETING = "hello"
[limits]
memory = "128m"
pids = 48
"""
levels = pytest.mark.parametrize(
    "level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS], scope="module"
)


def make(directory: Path, toml: str = TOML) -> Path:
    (directory / "static").mkdir(parents=True)
    (directory / "static" / "note").write_text("from a file", encoding="ascii")
    (directory / "static" / "link").symlink_to("note")
    (directory / "run.sh").write_text("#!/bin/sh\necho ran\n", encoding="ascii")
    (directory / "run.sh").chmod(0o755)
    (directory / ".secret").write_text("x", encoding="ascii")
    (directory / "server.py").write_text(SERVER, encoding="ascii")
    (directory / "sandbox.toml").write_text(toml, encoding="ascii")
    return directory


def cli(*argv: str, cwd: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def application(level: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The application at the level, serving; shared by the tests that only look at it."""
    before = leaks.snapshot()
    wanted = resolve.make(make(tmp_path_factory.mktemp("apps") / "app"), level)
    manager = Manager()
    running = manager.run(wanted.spec, application=wanted.application, owner=True)
    try:
        yield running
    finally:
        manager.destroy(running)
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@levels
def test_it_serves_from_its_own_files(application: Running) -> None:
    assert application.url is not None
    with urllib.request.urlopen(application.url, timeout=10) as reply:
        assert reply.read() == b"hello /app from a file"


@levels
def test_its_files_are_there_as_they_were_and_read_only(application: Running) -> None:
    shell = (
        "cd /app && ./run.sh && cat static/link && echo && ls -A && (echo x > new) 2>/dev/null; echo $?;"
        "(echo x > server.py) 2>/dev/null; echo $?"
    )
    script = f"import subprocess;print(subprocess.run(['sh','-c',{shell!r}],capture_output=True).stdout.decode())"
    found = application.sandbox.exec(["python3", "-c", script], timeout=60)
    lines = found.stdout.decode().split()
    assert lines[:4] == ["ran", "from", "a", "file"], found
    assert set(lines[4:-2]) == {"run.sh", "server.py", "static"}, "neither sandbox.toml nor what is hidden"
    assert all(code != "0" for code in lines[-2:]), "it could write to its own files"


@levels
def test_limits_of_the_file_are_in_force(application: Running, level: str) -> None:
    limits = application.sandbox.limits()
    assert (limits.memory, limits.pids) == (128 * MIB, 48)


@levels
def test_a_command_without_a_port_leaves_its_output_and_its_code(level: str) -> None:
    script = "import os,sys;print(os.getuid(), os.getcwd(), os.environ.get('A'));sys.exit(7)"
    done = cli(
        "run", "--rm", "--isolation", level, "-m", "128m", "-e", "A=b", "-w", "/tmp", "--", "python3", "-c", script
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "10001 /tmp b\n"


@levels
def test_mounts(level: str, application: Running, tmp_path: Path) -> None:
    """Beside the application, which keeps what the level has for all its sandboxes out of the count."""
    if level == "vm":
        done = cli("run", "--isolation", "vm", "-v", f"{tmp_path}:/data", "reactor")
        assert done.returncode == 125
        assert "shares no files" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        return
    tmp_path.chmod(0o755)
    shared, kept = tmp_path / "shared", tmp_path / "kept"
    for place in (shared, kept):
        place.mkdir()
        place.chmod(0o777)
        (place / "file").write_text("here", encoding="ascii")
    script = (
        "def attempt(path):\n"
        " try: open(path, 'w').write('inside'); return 'wrote'\n"
        " except OSError: return 'refused'\n"
        "print(open('/shared/file').read(), open('/kept/file').read(), attempt('/shared/new'), attempt('/kept/new'))"
    )
    done = cli(
        "run", "--rm", "--isolation", level, "-v", f"{shared}:/shared", "-v", f"{kept}:/kept:ro", "--",
        "python3", "-c", script,
    )  # fmt: skip
    assert done.stdout.split() == ["here", "here", "wrote", "refused"], done.stderr
    assert (shared / "new").read_text(encoding="ascii") == "inside"
    assert not (kept / "new").exists()


@pytest.mark.level("namespace")
class TestTheCommandLine:
    """What is said, and refused, before anything is made; one level is enough."""

    def test_a_directory_is_run_by_its_path(self, tmp_path: Path) -> None:
        make(tmp_path / "my-app")
        done = cli("run", "./my-app", "-d", "--name", "app-cli", "--isolation", "namespace", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        try:
            ident = done.stdout.strip()
            assert "serves at http://198.18." in done.stderr
            state = paths.state_dir() / "sandboxes" / ident / "app"
            assert (state / "server.py").stat().st_uid == 0
        finally:
            assert cli("rm", "-f", "app-cli").returncode == 0
        assert not state.exists()

    @pytest.mark.parametrize(
        ("argv", "word"),
        [
            ([], "WORKLOAD"),
            (["reactor", "--", "true"], "not both"),
            (["--"], "empty"),
            (["--port", "80", "reactor"], "--port"),
            (["--port", "0", "--", "true"], "65535"),
            (["--port", "x", "--", "true"], "integer"),
            (["--ready-path", "x", "--", "true"], "path of an HTTP request"),
            (["my-app"], "./my-app"),
            (["./empty"], "no sandbox.toml"),
            (["./nothing"], "no directory"),
            (["./broken"], "did you mean port?"),
            (["./greedy"], "limits.memory"),
            (["-v", "/:/host", "reactor"], "root"),
            (["-v", "/proc:/p", "reactor"], "cannot be mounted"),
            (["-v", "/run/docker.sock:/d", "reactor"], "-v"),
            (["-v", "../x:/d", "reactor"], "'..'"),
            (["-v", ".:/proc", "reactor"], "reserved"),
            (["-v", "nothing:/d", "reactor"], "No such file"),
            (["-p", "80", "reactor"], "HOST:CTR"),
            (["-p", "0.0.0.0:80:80", "reactor"], "127.0.0.1"),
            (["-p", "70000:80", "reactor"], "65535"),
            (["--disk", "1t", "reactor"], "--disk"),
            (["--disk", "-1", "reactor"], "--disk"),
            (["-w", "relative", "reactor"], "absolute"),
            (["--env-file", "nothing", "reactor"], "No such file"),
            (["--privileged", "reactor"], "not supported"),
            (["--network", "host", "reactor"], "not supported"),
            (["--net=host", "reactor"], "not supported"),
            (["--cap-add", "SYS_ADMIN", "reactor"], "not supported"),
            (["--user", "root", "reactor"], "not supported"),
            (["-u", "0", "reactor"], "not supported"),
            (["--device", "/dev/sda", "reactor"], "not supported"),
            (["--gpus", "all", "reactor"], "not supported"),
            (["--restart", "always", "reactor"], "not supported"),
            (["-it", "--", "sh"], "exec -it"),
            (["--security-opt", "seccomp=unconfined", "reactor"], "not supported"),
        ],
    )  # fmt: skip
    def test_refused_by_one_line(self, tmp_path: Path, argv: list[str], word: str) -> None:
        (tmp_path / "empty").mkdir()
        make(tmp_path / "my-app")
        make(tmp_path / "broken", "command = ['true']\nprot = 80\n")
        make(tmp_path / "greedy", "command = ['true']\n[limits]\nmemory = '999999g'\n")
        done = cli("run", *argv, cwd=tmp_path)
        assert done.returncode == 125
        assert done.stdout == ""
        assert word in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr

    def test_a_command_that_ended_is_kept_with_its_code(self) -> None:
        done = cli("run", "--name", "app-ended", "--", "sh", "-c", "echo said; exit 9")
        try:
            assert (done.returncode, done.stdout) == (9, "said\n")
            found = Manager().get("app-ended")
            assert found.record.status is Status.EXITED
            assert found.record.exit_code == 9
            assert cli("logs", "app-ended").stdout == "said\n"
        finally:
            assert cli("rm", "app-ended").returncode == 0

    def test_what_is_always_so_may_be_said(self) -> None:
        done = cli("run", "--rm", "--read-only", "--init", "--", "true")
        assert done.returncode == 0, done.stderr

    def test_a_command_that_is_not_there(self) -> None:
        before = leaks.state_files()
        done = cli("run", "--", "/no/such/command")
        assert done.returncode != 0
        assert leaks.state_files() - before == frozenset() or "sandbox prune" in done.stderr
        cli("prune")

    def test_an_application_too_large_is_refused_and_nothing_is_left(self, tmp_path: Path) -> None:
        app = make(tmp_path / "app")
        (app / "big").write_bytes(b"\0" * (65 * MIB))
        before = leaks.state_files()
        done = cli("run", str(app))
        assert done.returncode == 125
        assert "64 MiB" in done.stderr
        assert leaks.state_files() == before

    def test_a_link_out_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        app = make(tmp_path / "app")
        (app / "passwd").symlink_to("/etc/passwd")
        done = cli("run", str(app))
        assert done.returncode == 125
        assert "symbolic link out of the directory" in done.stderr


@pytest.mark.level("vm")
def test_files_must_fit_a_machines_memory(tmp_path: Path) -> None:
    app = make(tmp_path / "app")
    (app / "big").write_bytes(b"\0" * (40 * MIB))
    wanted = resolve.make(app, "vm", Options(memory="128m"))
    with pytest.raises(SpecError, match="memory"):
        Manager().run(wanted.spec, application=wanted.application)
