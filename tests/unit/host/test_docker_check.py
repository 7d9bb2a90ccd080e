"""The doctor's check of Docker, with a listener that sends the replies of the test."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.host import docker_check
from tests.unit.engine import VARIABLES, FakeEngine, listening

Answers = dict[str, tuple[int, Any]]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    with listening(tmp_path / "docker.sock") as found:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{found.path}")
        yield found


@pytest.fixture
def answers(engine: FakeEngine) -> Answers:
    return engine.answers


def test_a_daemon_that_answers(engine: FakeEngine) -> None:
    found = docker_check.daemon()
    assert found.ok
    assert found.detail == f"Docker 27.1.0 at unix://{engine.path}"


def test_nothing_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    found = docker_check.daemon()
    assert not found.ok
    assert found.detail == f"dockerd at unix://{tmp_path}/nothing does not answer"
    assert "DOCKER_HOST" in found.remedy


@pytest.mark.parametrize("host", ["ssh://elsewhere", "tcp://127.0.0.1:1", "unix://", "nonsense", "fd://"])
def test_hosts_that_cannot_be_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    found = docker_check.daemon()
    assert not found.ok
    assert host in found.detail
    assert "DOCKER_HOST" in found.remedy
    assert not docker_check.runsc().ok


def test_a_daemon_that_is_unwell(answers: Answers) -> None:
    answers["GET /_ping"] = (500, {"message": "on fire"})
    found = docker_check.daemon()
    assert not found.ok
    assert "on fire" in found.detail


def test_runsc_that_is_not_registered(answers: Answers) -> None:
    answers["GET /info"] = (200, {"ID": "x", "Runtimes": {"runc": {"path": "runc"}}})
    found = docker_check.runsc()
    assert not found.ok
    assert found.remedy


def test_an_answer_that_makes_no_sense(answers: Answers) -> None:
    answers["GET /info"] = (200, b"<html>")
    assert not docker_check.runsc().ok


def _working(answers: Answers, code: int) -> None:
    runtime = {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=host"]}
    answers |= {
        "GET /info": (200, {"ID": "x", "Runtimes": {"runsc": runtime}}),
        "POST /images/create": (200, {"status": "sha256:0"}),
        "POST /containers/create": (201, {"Id": "abc"}),
        "POST /containers/abc/start": (204, b""),
        "POST /containers/abc/wait": (200, {"StatusCode": code}),
        "DELETE /containers": (204, b""),
        "DELETE /images": (200, []),
    }


def test_runsc_that_works_is_tried_once(engine: FakeEngine, answers: Answers) -> None:
    _working(answers, 42)
    assert docker_check.runsc().ok
    assert docker_check.runsc().ok
    assert len([line for line in engine.asked if line.startswith("POST /containers/create")]) == 1
    removals = [line for line in engine.asked if line.startswith(f"DELETE /containers/{docker_check.PROBE}?")]
    assert len(removals) == 2, "before the trial, and after it"
    assert all("force=True" in line and "v=True" in line for line in removals)


def test_runsc_that_fails_is_tried_again(answers: Answers) -> None:
    _working(answers, 1)
    found = docker_check.runsc()
    assert not found.ok
    assert "exited with 1" in found.detail
    answers["POST /containers/abc/wait"] = (200, {"StatusCode": 42})
    assert docker_check.runsc().ok


def test_runsc_that_does_not_start_quotes_the_daemon(answers: Answers) -> None:
    _working(answers, 42)
    answers["POST /containers/abc/start"] = (500, {"message": "OCI runtime create failed: no luck"})
    answers["GET /info"] = (200, {"ID": "x", "Runtimes": {"runsc": {"path": "/usr/bin/runsc"}}})
    found = docker_check.runsc()
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
