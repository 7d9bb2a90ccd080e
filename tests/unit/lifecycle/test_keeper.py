"""The monitor as a program: it waits for a child it inherits over exec, and writes down how that ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.isolation.local import exit
from sandbox.lifecycle import keeper
from sandbox.phases import Status
from sandbox.spec import SandboxSpec
from sandbox.state import paths
from sandbox.state.record import Record
from sandbox.state.store import Store

ROOT = Path(__file__).resolve().parents[3]
BECOME = (
    "import os,sys\nfrom sandbox.lifecycle import keeper\npid=os.fork()\n"
    "if pid==0: os.execvp('sh',['sh','-c',sys.argv[3]])\n"
    "argv=keeper.command(sys.argv[1],pid,sys.argv[2],'keep')\nos.execv(argv[0],argv)"
)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path))
    store = Store()
    store.ensure()
    ident, lock = store.claim_id()
    os.close(lock)
    record = store.new(SandboxSpec("job", "sh", "namespace", ("true",), port=None), "198.18.2.1", ident)
    record.status = Status.RUNNING
    store.save(record)
    return record


def watch(record: Record, script: str) -> subprocess.CompletedProcess[str]:
    code_file = str(record.directory / exit.EXIT_FILE)
    return subprocess.run(
        [sys.executable, "-c", BECOME, record.id, code_file, script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("true", 0), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_code_goes_into_the_file_and_the_record(record: Record, script: str, code: int) -> None:
    done = watch(record, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert exit.code(record) == code
    after = Store().load(record.id)
    assert after.exit_code == code
    assert after.status is Status.EXITED


def test_one_that_was_removed_meanwhile_is_no_error(record: Record) -> None:
    Store().remove([record.id])
    done = watch(record, "exit 3")
    assert (done.returncode, done.stderr) == (0, "")
    assert not record.directory.exists()


def test_what_is_no_child_is_waited_for_and_its_parents_word_taken(record: Record) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        code_file = str(record.directory / exit.EXIT_FILE)
        argv = keeper.command(record.id, stranger.pid, code_file, keeper.KEEP)
        with subprocess.Popen(argv, cwd="/") as watcher:
            with pytest.raises(subprocess.TimeoutExpired):
                watcher.wait(0.2)
            Path(code_file).write_text("5")
            stranger.kill()
            assert watcher.wait(10) == 0
    assert Store().load(record.id).exit_code == 5


def test_a_code_is_not_waited_for_where_nobody_will_write_it(record: Record) -> None:
    assert exit.code(record) is None
    (record.directory / exit.MONITOR_FILE).write_text(json.dumps([4_194_000, 1, "no such boot"]))
    assert exit.code(record) is None
    for nonsense in ("", "[]", "null", '["a", 1, 2]', "{"):
        (record.directory / exit.MONITOR_FILE).write_text(nonsense)
        assert exit.monitor(record) is None
        exit.dismiss(record)


def test_a_file_that_names_a_stranger_kills_nobody(record: Record) -> None:
    from sandbox.state.processid import ProcessId

    with subprocess.Popen(["sleep", "60"]) as stranger:
        found = ProcessId.of(stranger.pid)
        assert found is not None
        words = json.dumps([found.pid, found.start_time, found.boot_id])
        (record.directory / exit.MONITOR_FILE).write_text(words)
        exit.dismiss(record)
        assert stranger.poll() is None
        stranger.kill()


def test_it_imports_little_while_it_waits() -> None:
    script = (
        "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'monitor', '__file__': sys.argv[1]})\n"
        "print(*(name for name in ('json', 'pathlib', 'click', 'sandbox', 'socket', 'typing') if name in sys.modules))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, keeper.__file__]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"
