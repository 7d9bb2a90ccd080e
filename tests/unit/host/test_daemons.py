"""Daemons that we start: detached, recorded, and never mistaken for another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import EngineError, StoreError
from sandbox.host import daemons
from sandbox.state.processid import ProcessId

SLEEP = ["sleep", "600"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    yield tmp_path / "state"
    for name in daemons.ours():
        daemons.stop(name, 1)


def _start(name: str = "sleeper") -> ProcessId:
    return daemons.start(name, SLEEP, ready=lambda: True)


def test_it_is_detached_clean_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    script = "pwd; env; grep -E '^Sig(Ign|Blk)' /proc/self/status; echo oops >&2; exec sleep 600"
    process = daemons.start(
        "talker",
        ["sh", "-c", script],
        ready=lambda: "oops" in daemons.log_path("talker").read_text(encoding="utf-8"),
        environment={"EXTRA": "2"},
        timeout=10,
    )
    said = daemons.log_path("talker").read_text(encoding="utf-8")
    assert said.startswith("/\n")
    assert "SECRET" not in said
    assert "EXTRA=2" in said
    assert "SigBlk:\t0000000000000000" in said
    ignored = int(said.split("SigIgn:\t")[1].split()[0], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1)), "Python ignores SIGPIPE; a daemon must not inherit that"
    assert os.getsid(process.pid) == process.pid
    assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"


def test_it_outlives_the_command_that_started_it(state: Path) -> None:
    script = textwrap.dedent(
        f"""
        from sandbox.host import daemons
        print(daemons.start("sleeper", {SLEEP!r}, ready=lambda: True).pid)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(state) in str(daemons.log_path("sleeper"))
    found = daemons.running("sleeper")
    assert found is not None
    assert found.pid == int(done.stdout)
    assert daemons.stop("sleeper", 5)
    assert not found.alive()


def test_a_second_start_finds_the_first() -> None:
    assert _start() == _start()


def test_stop_is_idempotent_and_forgets() -> None:
    process = _start()
    assert daemons.ours() == {"sleeper": process}
    assert daemons.stop("sleeper")
    assert not process.alive()
    assert not daemons.stop("sleeper")
    assert daemons.ours() == {}


def test_the_last_started_comes_first() -> None:
    _start("first")
    time.sleep(0.05)
    _start("second")
    assert list(daemons.ours()) == ["second", "first"]


def test_one_that_does_not_listen_to_sigterm_is_killed() -> None:
    started = daemons.log_path("stubborn")
    process = daemons.start(
        "stubborn",
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
        ready=lambda: "ready" in started.read_text(encoding="utf-8"),
        timeout=10,
    )
    assert daemons.stop("stubborn", 0.3)
    assert not process.alive()


def test_another_process_with_its_pid_is_not_ours(state: Path) -> None:
    process = _start()
    record = state / "host" / "daemon-sleeper.json"
    raw = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**raw, "start_time": raw["start_time"] - 1}), encoding="utf-8")
    assert daemons.running("sleeper") is None
    assert not daemons.stop("sleeper")
    assert process.alive(), "it must not have been signalled"
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "start_time": 0, "boot_id": ""}'])
def test_a_damaged_record_is_nobody(state: Path, text: str) -> None:
    (state / "host").mkdir(parents=True)
    (state / "host" / "daemon-broken.json").write_text(text, encoding="utf-8")
    assert daemons.running("broken") is None
    assert daemons.ours() == {}
    assert not daemons.stop("broken")


def test_one_that_dies_is_quoted() -> None:
    with pytest.raises(EngineError, match="no luck") as caught:
        daemons.start("dier", ["sh", "-c", "echo no luck; exit 3"], ready=lambda: False, timeout=10)
    assert str(daemons.log_path("dier")) in str(caught.value.hint)
    assert daemons.running("dier") is None


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="No such file"):
        daemons.start("nobody", ["no-such-daemon"], ready=lambda: False, timeout=10)


def test_one_that_is_never_ready_is_stopped() -> None:
    with pytest.raises(EngineError, match="was not ready within"):
        daemons.start("mute", SLEEP, ready=lambda: False, timeout=0.3)
    assert daemons.running("mute") is None


def test_a_state_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", "/proc/nowhere")
    with pytest.raises(StoreError):
        _start()


def test_signals_reach_the_daemon() -> None:
    process = _start()
    assert daemons.send("sleeper", signal.SIGTERM)
    deadline = time.monotonic() + 5
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.alive()
    assert not daemons.send("sleeper", signal.SIGTERM)
    os.waitpid(process.pid, 0)
