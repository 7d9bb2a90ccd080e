"""Requests to Docker's API over its socket, against a listener that sends the replies of the test."""

from __future__ import annotations

import http.server
import io
import json
import os
import socketserver
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.host import docker_check

Answers = dict[str, tuple[int, Any]]


class _Handler(http.server.BaseHTTPRequestHandler):
    answers: Answers
    asked: list[str]

    def _answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = next((key for key in self.answers if f"{self.command} {self.path}".startswith(key)), None)
        status, body = self.answers[key] if key else (404, {"message": "no such thing"})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data:
            self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def version_string(self) -> str:
        return "Docker/27.1.0 (linux)"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def address_string(self) -> str:
        return "unix"


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def answers() -> Answers:
    return {"GET /_ping": (200, b"OK")}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def engine(
    tmp_path: Path, answers: Answers, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[docker_check.Engine]:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    path = str(tmp_path / "docker.sock")
    with _Server(path, type("Handler", (_Handler,), {"answers": answers, "asked": asked})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield docker_check.Engine(f"unix://{path}")
        server.shutdown()
        thread.join()


def test_a_daemon_that_answers(engine: docker_check.Engine) -> None:
    found = docker_check.daemon(engine)
    assert found.ok
    assert found.detail.startswith("Docker 27.1.0 at unix://")


def test_nothing_listens(tmp_path: Path) -> None:
    found = docker_check.daemon(docker_check.Engine(f"unix://{tmp_path}/nothing"))
    assert not found.ok
    assert "nothing listens" in found.detail
    assert "DOCKER_HOST" in found.remedy


@pytest.mark.parametrize("host", ["ssh://elsewhere", "unix://", "nonsense", "fd://"])
def test_hosts_that_cannot_be_asked(host: str) -> None:
    found = docker_check.daemon(docker_check.Engine(host))
    assert not found.ok
    assert host in found.detail


def test_a_refused_address() -> None:
    found = docker_check.daemon(docker_check.Engine("tcp://127.0.0.1:1"))
    assert not found.ok
    assert "refused" in found.detail.lower()


def test_a_daemon_that_is_unwell(engine: docker_check.Engine, answers: Answers) -> None:
    answers["GET /_ping"] = (500, {"message": "on fire"})
    assert "HTTP 500" in docker_check.daemon(engine).detail


def test_runsc_that_is_not_registered(engine: docker_check.Engine, answers: Answers) -> None:
    answers["GET /info"] = (200, {"ID": "x", "Runtimes": {"runc": {"path": "runc"}}})
    found = docker_check.runsc(engine)
    assert not found.ok
    assert found.remedy


def test_an_answer_that_makes_no_sense(engine: docker_check.Engine, answers: Answers) -> None:
    answers["GET /info"] = (200, b"<html>")
    assert not docker_check.runsc(engine).ok


def _working(answers: Answers, code: int) -> None:
    runtime = {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=host"]}
    answers |= {
        "GET /info": (200, {"ID": "x", "Runtimes": {"runsc": runtime}}),
        "POST /images/create": (200, {"status": "sha256:0"}),
        "POST /containers/create": (201, {"Id": "abc"}),
        "POST /containers/abc/start": (204, b""),
        "POST /containers/abc/wait": (200, {"StatusCode": code}),
        "DELETE /": (204, b""),
    }


def test_runsc_that_works_is_tried_once(engine: docker_check.Engine, answers: Answers, asked: list[str]) -> None:
    _working(answers, 42)
    assert docker_check.runsc(engine).ok
    assert docker_check.runsc(docker_check.Engine(engine.host)).ok
    assert len([line for line in asked if line.startswith("POST /containers/create")]) == 1
    assert asked.count(f"DELETE /containers/{docker_check.PROBE}?force=1&v=1") == 2, "before the trial, and after it"


def test_runsc_that_fails_is_tried_again(engine: docker_check.Engine, answers: Answers) -> None:
    _working(answers, 1)
    found = docker_check.runsc(engine)
    assert not found.ok
    assert "exited with 1" in found.detail
    answers["POST /containers/abc/wait"] = (200, {"StatusCode": 42})
    assert docker_check.runsc(engine).ok


def test_runsc_that_does_not_start_quotes_the_daemon(engine: docker_check.Engine, answers: Answers) -> None:
    _working(answers, 42)
    answers["POST /containers/abc/start"] = (500, {"message": "OCI runtime create failed: no luck"})
    answers["GET /info"] = (200, {"ID": "x", "Runtimes": {"runsc": {"path": "/usr/bin/runsc"}}})
    found = docker_check.runsc(engine)
    assert "no luck" in found.detail
    assert "--network=host" in found.remedy, "without it Debian's runsc does not start"


def test_the_trials_program_exits_with_its_code(tmp_path: Path) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the program is x86-64 code")
    with tarfile.open(fileobj=io.BytesIO(docker_check._image())) as archive:
        program = archive.extractfile("probe")
        assert program is not None
        path = tmp_path / "probe"
        path.write_bytes(program.read())
    path.chmod(0o755)
    assert subprocess.run([str(path)], check=False).returncode == 42
