"""Test a keeper's actions at the end: the end is recorded in the file and in the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.isolation import ending, keeper, supervision
from sandbox.isolation.keeper import STDOUT
from sandbox.isolation.supervision import Keeper, Source
from sandbox.phases import Status
from sandbox.spec import SandboxSpec
from sandbox.state import paths
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from sandbox.state.store import Store


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path))
    store = Store()
    store.ensure()
    ident, lock = store.claim_id()
    os.close(lock)
    record = store.new(SandboxSpec("job", "sh", "namespace", ("true",), port=None), "198.18.2.1", ident)
    record.owner = ProcessId.of(os.getpid())
    record.status = Status.RUNNING
    store.save(record)
    return record


def keep(record: Record, script: str) -> Keeper:
    def spawn() -> int:
        return os.posix_spawnp("sh", ["sh", "-c", script], os.environ)

    kept = supervision.launch(record, [], spawn=spawn)
    kept.wait_ready()
    return kept


def comes_true(condition: Callable[[], object], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def over(kept: Keeper) -> bool:
    kept.reap()
    return not Path(f"/proc/{kept.pid}").exists()


@pytest.mark.parametrize("early", [True, False], ids=["detached-before", "detached-after"])
@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("true", 0), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_code_goes_into_the_file_and_the_record(record: Record, script: str, code: int, early: bool) -> None:
    kept = keep(record, f"sleep {0.2 if early else 0}; {script}")
    if not early:
        assert list(kept.output(print)) == []
        assert kept.wait_exit_code(0) == code
    kept.detach(keeper.NOTE)
    assert comes_true(lambda: over(kept))
    found = ending.read(record.directory)
    assert found is not None
    assert found.code == code
    assert abs(found.time - time.time()) < 60
    after = Store().load(record.id)
    assert after.exit_code == code
    assert after.status is Status.EXITED


def test_the_end_is_noted_where_the_command_has_died(record: Record) -> None:
    kept = keep(record, "sleep 0.3; exit 4")
    kept.close()  # as the kernel does for it
    assert comes_true(lambda: over(kept))
    assert Store().load(record.id).exit_code == 4


def test_where_the_command_does_it_nothing_is_noted(record: Record) -> None:
    kept = keep(record, "sleep 0.1; exit 4")
    kept.leave()
    assert comes_true(lambda: over(kept))
    assert Store().load(record.id).status is Status.RUNNING
    found = ending.read(record.directory)
    assert found is not None
    assert found.code == 4


def test_one_that_was_removed_meanwhile_is_no_error(record: Record, capfd: pytest.CaptureFixture[str]) -> None:
    kept = keep(record, "sleep 0.3; exit 3")
    kept.detach(keeper.NOTE)
    assert Store().remove([record.id]) == {}
    assert comes_true(lambda: over(kept))
    assert not record.directory.exists()
    assert capfd.readouterr() == ("", "")


def test_an_end_is_not_waited_for_where_nobody_will_write_it(record: Record) -> None:
    begin = time.monotonic()
    assert ending.wait(record.directory) is None
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "[]",
        "null",
        "{",
        '{"code": 1}',
        '{"code": "1", "time": 1, "oom_killed": null, "reason": ""}',
        '{"code": true, "time": 1, "oom_killed": null, "reason": ""}',
        '{"code": 256, "time": 1, "oom_killed": null, "reason": ""}',
        '{"code": 1, "time": 1, "oom_killed": 0, "reason": ""}',
    ],
)
def test_an_end_is_read_strictly(record: Record, nonsense: str) -> None:
    (record.directory / keeper.EXIT).write_text(nonsense)
    assert ending.read(record.directory) is None


def test_a_file_that_names_a_stranger_kills_nobody(record: Record) -> None:
    """The keeper is identified by the kernel's lock; the file's content is ignored."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (record.directory / keeper.LOCK).write_text(json.dumps([stranger.pid]))
        assert supervision.holder(record.directory) is None
        supervision.silence(record.directory)
        supervision.wait_gone(record.directory)
        assert stranger.poll() is None
        stranger.kill()


def test_it_imports_little_while_it_waits() -> None:
    script = (
        "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'keeper', '__file__': sys.argv[1]})\n"
        "print(*({'json', 'pathlib', 'click', 'sandbox', 'socket', 'typing', 'enum'} & set(sys.modules)))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, keeper.__file__]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_what_was_written_is_in_the_log_before_the_end_is_told(record: Record) -> None:
    reading, writing = os.pipe()
    script = "yes | head -c 1000000"

    def spawn() -> int:
        actions = [(os.POSIX_SPAWN_DUP2, writing, 1)]
        return os.posix_spawnp("sh", ["sh", "-c", script], os.environ, file_actions=actions)

    kept = supervision.launch(record, [Source(reading, STDOUT)], spawn=spawn)
    os.close(writing)
    kept.wait_ready()
    kept.leave()
    assert comes_true(lambda: ending.read(record.directory))
    assert (record.directory / keeper.LOG).stat().st_size > 1_000_000
    assert comes_true(lambda: over(kept))


def test_one_that_is_to_be_removed_at_its_end_is_removed(record: Record) -> None:
    """As a warm start is: its keeper was started before anybody said so, and learns it from the record."""
    kept = keep(record, "sleep 0.3; exit 3")
    changed = Store().load(record.id)
    changed.remove_at_end = True
    Store().save(changed)
    kept.detach(keeper.NOTE)
    assert comes_true(lambda: not record.directory.exists())


def test_a_workload_that_ended_before_its_command_had_let_go_is_kept(record: Record) -> None:
    """The keeper has reported the end by then, and the command closes the connection without reading that."""
    record.owner = None
    kept = keep(record, "exit 6")
    assert comes_true(lambda: ending.read(record.directory) is not None)
    time.sleep(0.1)
    kept.detach(keeper.NOTE)
    assert comes_true(lambda: over(kept))
    assert Store().load(record.id).exit_code == 6
