"""Test the keeper of a container: the attach stream, the end reported by dockerd, and a restart of dockerd."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox.host.docker import Engine
from sandbox.isolation import ending, keeper, log, supervision
from sandbox.isolation.docker import output
from sandbox.isolation.supervision import Keeper
from tests.unit.engine import FakeEngine, listening

ATTACH = "POST /containers/c/attach?stream=1&stdout=1&stderr=1"
LOOK = "GET /containers/c/json"


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


def state(code: int, *, running: bool = False, oom: bool = False) -> tuple[int, Any]:
    return 200, {"State": {"Running": running, "ExitCode": code, "OOMKilled": oom}}


def comes_true(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def record(tmp_path: Path) -> Any:
    (tmp_path / "sandbox").mkdir()
    return SimpleNamespace(id="0123456789ab", directory=tmp_path / "sandbox", owner=None)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with listening(tmp_path / "s") as found:
        yield found


@pytest.fixture
def workload() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the container's init."""
    with subprocess.Popen(["sleep", "600"]) as found:
        yield found
        found.kill()


def kept(record: Any, engine: FakeEngine, pid: int | None) -> Keeper:
    client = Engine(engine.path)
    found = output.keep(record, output.attach(client, "c"), client, "c", pid)
    found.leave()
    return found


def test_the_stream_is_logged_and_the_end_is_dockerds(record: Any, engine: FakeEngine) -> None:
    engine.answers[ATTACH] = (101, frame(1, b"out\xff") + frame(2, b"err\n") + frame(1, b"no newline"))
    engine.answers[LOOK] = state(3)
    kept(record, engine, None)
    found = ending.wait(record.directory)
    assert found is not None
    assert (found.code, found.oom_killed, found.reason) == (3, False, "exited")
    assert [(one.stream, one.data) for one in log.read(record.directory, running=lambda: False)] == [
        (1, b"out\xff"),
        (2, b"err\n"),
        (1, b"no newline"),
    ]
    assert engine.asked[0] == ATTACH


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"[FATAL tini (7)] exec no such failed: No such file or directory\n", b"there is no command 'no such' inside"),
        (
            b"[FATAL tini (2)] exec /etc/passwd failed: Permission denied\n",
            b"'/etc/passwd' cannot be executed: Permission",
        ),
    ],
)
def test_an_init_that_cannot_execute_is_put_in_our_words(
    record: Any, engine: FakeEngine, said: bytes, words: bytes, in_pieces: bool
) -> None:
    whole, pieces = frame(2, said), b"".join(frame(2, said[at : at + 5]) for at in range(0, len(said), 5))
    engine.answers[ATTACH] = (101, pieces if in_pieces else whole)
    engine.answers[LOOK] = state(127)
    kept(record, engine, None)
    assert ending.wait(record.directory) is not None
    (found,) = log.read(record.directory, running=lambda: False)
    assert found.data.startswith(b"sandbox: " + words)
    assert found.data.count(b"\n") == 1


@pytest.mark.parametrize(
    "said",
    [
        frame(1, b"[FATAL tini (7)] exec x failed: y\n"),
        frame(1, b"x") + frame(2, b"[FATAL tini (7)] exec x failed: y\n"),
        frame(2, b"[FATAL tini (7)] else\n"),
    ],
)
def test_other_words_are_left_as_they_are(record: Any, engine: FakeEngine, said: bytes) -> None:
    engine.answers[ATTACH] = (101, said)
    engine.answers[LOOK] = state(0)
    kept(record, engine, None)
    assert ending.wait(record.directory) is not None
    found = [frame(one.stream, one.data) for one in log.read(record.directory, running=lambda: False)]
    assert b"".join(found) == said


def test_an_oom_kill_is_dockerds_word(record: Any, engine: FakeEngine) -> None:
    engine.answers[ATTACH] = (101, b"")
    engine.answers[LOOK] = state(137, oom=True)
    kept(record, engine, None)
    found = ending.wait(record.directory)
    assert found is not None
    assert (found.code, found.oom_killed, found.reason) == (137, True, "out of memory")


def test_an_end_that_dockerd_has_yet_to_note_is_waited_for(record: Any, engine: FakeEngine) -> None:
    engine.answers[ATTACH] = (101, b"")
    engine.answers[LOOK] = state(0, running=True)
    kept(record, engine, None)
    assert comes_true(lambda: engine.asked.count(LOOK) >= 3)
    assert ending.read(record.directory) is None
    engine.answers[LOOK] = state(7)
    found = ending.wait(record.directory)
    assert found is not None
    assert found.code == 7


@pytest.mark.parametrize("answer", [(404, {"message": "no such container"}), (200, b"<html>"), (200, {"State": None})])
def test_an_end_that_dockerd_does_not_know(record: Any, engine: FakeEngine, answer: tuple[int, Any]) -> None:
    engine.answers[ATTACH] = (101, frame(1, b"said"))
    engine.answers[LOOK] = answer
    kept(record, engine, None)
    found = ending.wait(record.directory)
    assert found is not None
    assert (found.code, found.oom_killed) == (None, None)
    assert json.loads((record.directory / keeper.EXIT).read_text())["reason"] == "exited"


def test_a_container_that_outlives_dockerd_is_connected_anew(
    record: Any, engine: FakeEngine, workload: subprocess.Popen[bytes]
) -> None:
    engine.answers[ATTACH] = (101, frame(1, b"before ") + frame(1, b"cut off")[:-3])
    engine.answers[LOOK] = state(5)
    kept(record, engine, workload.pid)
    assert comes_true(lambda: engine.asked.count(ATTACH) >= 2)
    assert ending.read(record.directory) is None, "its init lives"
    for answer in ((409, {"message": "not now"}), (101, frame(1, b"after"))):
        engine.answers[ATTACH] = answer
        engine.asked.clear()
        assert comes_true(lambda: ATTACH in engine.asked)
    workload.kill()
    workload.wait()
    found = ending.wait(record.directory)
    assert found is not None
    assert found.code == 5
    said = b"".join(one.data for one in log.read(record.directory, running=lambda: False))
    assert said.startswith(b"before cut ")
    assert said.endswith(b"after")


def test_nobody_answers_any_more(record: Any, engine: FakeEngine, workload: subprocess.Popen[bytes]) -> None:
    engine.answers[ATTACH] = (101, b"")
    kept(record, engine, workload.pid)
    os.unlink(engine.path)
    time.sleep(0.7)
    assert supervision.watching(record.directory)
    workload.kill()
    workload.wait()
    assert comes_true(lambda: ending.read(record.directory))
    found = ending.read(record.directory)
    assert found is not None
    assert found.code is None
