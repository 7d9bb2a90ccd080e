"""Test the keeper: all bytes reach the log and the reader, back-pressure, the end, and a detached keeper."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox.isolation import keeper, log, supervision
from sandbox.isolation.keeper import MULTIPLEXED, STDERR, STDOUT
from sandbox.isolation.supervision import Keeper, Source

IDENT = "0123456789ab"
MIB = 1 << 20


def comes_true(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def program(script: str, out: int, err: int) -> Callable[[], int]:
    """Return a function that starts an init: a Python script with these descriptors as its outputs."""

    def spawn() -> int:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.closerange(3, 4096)
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", script])
        return pid

    return spawn


def ignore(_count: int) -> None:
    """Ignore a number of dropped bytes."""


@pytest.fixture
def record(tmp_path: Path) -> Any:
    return SimpleNamespace(id=IDENT, directory=tmp_path, owner="the test")


@pytest.fixture
def start(record: Any) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(script: str, **options: Any) -> Keeper:
        (out, out_write), (err, err_write) = os.pipe(), os.pipe()
        try:
            kept = supervision.launch(
                record,
                [Source(out, STDOUT), Source(err, STDERR)],
                spawn=program(script, out_write, err_write),
                **options,
            )
        finally:
            os.close(out_write)
            os.close(err_write)
        made.append(kept)
        kept.wait_ready()
        return kept

    yield make
    for kept in made:
        with suppress(ProcessLookupError):
            os.kill(kept.child, signal.SIGKILL)
        supervision.silence(record.directory)
        kept.close()
        supervision.wait_gone(record.directory)


def logged(directory: Path, stream: int | None = None, **options: Any) -> bytes:
    found = log.read(directory, running=lambda: supervision.watching(directory), **options)
    return b"".join(piece.data for piece in found if stream in (None, piece.stream))


def ended(directory: Path) -> dict[str, Any]:
    assert comes_true((directory / keeper.EXIT).exists)
    found: dict[str, Any] = json.loads((directory / keeper.EXIT).read_text())
    return found


def test_the_streams_stay_apart_and_the_end_is_noted(start: Callable[..., Keeper], tmp_path: Path) -> None:
    script = "import os; os.write(1, b'out'); os.write(2, bytes(range(256))); os._exit(7)"
    kept = start(script)
    pieces = list(kept.output(ignore))
    assert b"".join(one.data for one in pieces if one.stream == STDOUT) == b"out"
    assert b"".join(one.data for one in pieces if one.stream == STDERR) == bytes(range(256))
    assert all(abs(one.time - time.time()) < 30 for one in pieces)
    assert kept.wait_exit_code(0) == 7
    found = ended(tmp_path)
    assert (found["code"], found["reason"], found["oom_killed"]) == (7, "exited", None)
    assert logged(tmp_path, STDOUT) == b"out"
    assert logged(tmp_path, STDERR) == bytes(range(256))


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 100_000_000])
def test_every_byte_reaches_a_reader_in_the_foreground(start: Callable[..., Keeper], size: int) -> None:
    script = (
        "import os, random, hashlib\n"
        f"left, part, seen = {size}, random.Random(1).randbytes(1 << 20), hashlib.sha256()\n"
        "while left:\n"
        "    sent = os.write(1, part[: min(left, 1 << 20)])\n"
        "    seen.update(part[:sent]); left -= sent\n"
        "os.write(2, seen.hexdigest().encode())\n"
    )
    kept = start(script)
    found, errors, count = hashlib.sha256(), b"", 0
    for piece in kept.output(ignore):
        if piece.stream == STDOUT:
            found.update(piece.data)
            count += len(piece.data)
        else:
            errors += piece.data
    assert count == size
    assert found.hexdigest().encode() == errors
    assert kept.wait_exit_code(0) == 0


def test_a_slow_reader_holds_the_workload_and_loses_nothing(
    start: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PART_BYTES", MIB)
    kept = start("import os\nfor n in range(100): os.write(1, b'%07d\\n' % n * 8192)\nos.write(2, b'done')")
    output = kept.output(ignore)
    pieces = [next(output)]
    time.sleep(0.5)
    assert logged(tmp_path, STDERR) == b"", "it waits for its reader"
    assert sum(part.stat().st_size for part in tmp_path.glob("log*")) < 3 * MIB
    pieces += output
    whole = b"".join(piece.data for piece in pieces if piece.stream == STDOUT)
    assert whole == b"".join(b"%07d\n" % number * 8192 for number in range(100))
    assert pieces[-1].data == b"done"


def test_without_a_reader_the_cap_holds_and_what_it_dropped_is_told(
    start: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PART_BYTES", MIB)
    kept = start("import os\nfor n in range(100): os.write(1, b'%07d\\n' % n * 8192)\nos.write(2, b'done')")
    kept.stop_following()
    ended(tmp_path)
    dropped: list[int] = []
    text = logged(tmp_path, dropped=dropped.append)
    assert text.endswith(b"0000099\ndone")
    assert sum(dropped) + len(text) == 100 * 65536 + 4
    assert MIB <= sum(part.stat().st_size for part in tmp_path.glob("log*")) <= 2 * MIB + 3 * keeper.CHUNK


@pytest.mark.parametrize("reader", ["gone", "detached"])
def test_a_reader_that_stops_does_not_stop_the_workload(
    start: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    monkeypatch.setattr(keeper, "PART_BYTES", MIB)
    kept = start("import os\nfor n in range(100): os.write(1, b'x' * 65536)\nos._exit(3)")
    next(kept.output(ignore))
    if reader == "detached":
        kept.leave()
    else:
        assert kept._control is not None
        kept._control.close()  # as the kernel does for a command that was killed
        kept._control = None
    assert ended(tmp_path)["code"] == 3


def test_detached_it_is_another_program_and_goes_on(start: Callable[..., Keeper], tmp_path: Path) -> None:
    script = "import os, time\nos.write(1, b'one')\ntime.sleep(1)\nos.write(1, b'two')\nos._exit(300 - 256)"
    kept = start(script)
    assert comes_true(lambda: logged(tmp_path) == b"one")
    kept.leave()
    arguments = Path(f"/proc/{kept.pid}/cmdline")
    assert comes_true(lambda: f"sbx-{IDENT}".encode() in arguments.read_bytes().split(b"\0"))
    assert supervision.holder(tmp_path) == kept.pid
    assert {os.readlink(f"/proc/{kept.pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert logged(tmp_path, follow=True) == b"onetwo"
    assert ended(tmp_path)["code"] == 44
    assert comes_true(lambda: supervision.holder(tmp_path) is None)


def test_it_holds_nothing_of_the_command(start: Callable[..., Keeper]) -> None:
    reading, writing = os.pipe()
    kept = start("import time; time.sleep(60)")
    os.close(writing)
    assert os.read(reading, 1) == b"", "neither keeper nor workload has the other end"
    os.close(reading)
    assert os.getsid(kept.pid) == kept.pid
    assert os.readlink(f"/proc/{kept.pid}/cwd") == "/"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_to_a_terminals_processes_do_not_end_it(start: Callable[..., Keeper], number: int) -> None:
    kept = start("import time; time.sleep(60)")
    os.kill(kept.pid, number)
    os.kill(kept.child, signal.SIGKILL)
    assert list(kept.output(ignore)) == []
    assert kept.wait_exit_code(0) == 137


def test_silenced_it_records_nothing_and_still_reports_the_code(start: Callable[..., Keeper], tmp_path: Path) -> None:
    kept = start("import time; time.sleep(60)")
    supervision.silence(tmp_path)
    os.kill(kept.child, signal.SIGKILL)
    supervision.wait_gone(tmp_path)
    assert kept.wait_exit_code(5) == 137
    assert not (tmp_path / keeper.EXIT).exists()
    assert supervision.holder(tmp_path) is None


def test_a_killed_keeper_leaves_a_log_that_can_be_read(start: Callable[..., Keeper], tmp_path: Path) -> None:
    kept = start("import os, time\nos.write(1, b'said')\ntime.sleep(60)")
    assert comes_true(lambda: logged(tmp_path) == b"said")
    os.kill(kept.pid, signal.SIGKILL)
    assert b"".join(piece.data for piece in kept.output(ignore)) == b"said"
    assert logged(tmp_path, follow=True) == b"said"
    assert kept.wait_exit_code(1) is None


def test_a_child_left_behind_does_not_keep_it(start: Callable[..., Keeper], tmp_path: Path) -> None:
    script = "import os, time\nif os.fork() == 0: time.sleep(60)\nos.write(1, b'said')"
    kept = start(script)
    assert b"".join(piece.data for piece in kept.output(ignore)) == b"said"
    assert kept.wait_exit_code(0) == 0
    os.killpg(kept.child, signal.SIGKILL)


def test_a_child_left_behind_that_writes_on_and_on_does_not_keep_it_either(start: Callable[..., Keeper]) -> None:
    script = (
        "import os, time\nif os.fork() == 0:\n    while True: os.write(1, b'x' * 65536)\ntime.sleep(0.3)\nos._exit(6)"
    )
    kept = start(script)
    kept.stop_following()
    begin = time.monotonic()
    assert b"".join(piece.data for piece in kept.output(ignore)).strip(b"x") == b""
    assert kept.wait_exit_code(0) == 6
    assert time.monotonic() - begin < 10


def test_what_spawn_fails_of_is_raised_here(record: Any) -> None:
    def spawn() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(BlockingIOError, match="temporarily"):
        supervision.launch(record, [], spawn=spawn)
    assert supervision.holder(record.directory) is None


def test_a_process_that_is_watched(record: Any, tmp_path: Path) -> None:
    (out, out_write), (status, status_write) = os.pipe(), os.pipe()
    pid = program("import os; os.write(1, b'said'); os._exit(9)", out_write, 2)()
    kept = supervision.launch(record, [Source(out, STDOUT)], pid=pid, status=status)
    os.close(out_write)
    _, found = os.waitpid(pid, 0)
    os.write(status_write, str(os.waitstatus_to_exitcode(found)).encode())
    os.close(status_write)
    assert b"".join(piece.data for piece in kept.output(ignore)) == b"said"
    assert kept.wait_exit_code(0) == 9
    assert ended(tmp_path)["code"] == 9
    kept.leave()


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 4096])
def test_dockers_frames(record: Any, tmp_path: Path, cut: int) -> None:
    generator = random.Random(cut)
    pieces = [(generator.choice([1, 2]), generator.randbytes(generator.choice([0, 1, 9, 300]))) for _ in range(50)]
    text = b"".join(frame(*piece) for piece in pieces)
    out, write = os.pipe()
    kept = supervision.launch(record, [Source(out, MULTIPLEXED)])
    for begin in range(0, len(text), cut):
        os.write(write, text[begin : begin + cut])
    os.close(write)
    found = list(kept.output(ignore))
    for stream in (STDOUT, STDERR):
        assert joined(found, stream) == b"".join(data for of, data in pieces if of == stream)
    assert ended(tmp_path)["code"] is None
    kept.leave()


def joined(pieces: Sequence[log.Piece], stream: int) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.stream == stream)


def test_an_oom_kill_is_noted(start: Callable[..., Keeper], tmp_path: Path) -> None:
    (tmp_path / "events").write_text("low 0\noom 1\noom_kill 1\n")
    kept = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", events=str(tmp_path / "events"))
    assert list(kept.output(ignore)) == []
    found = ended(tmp_path)
    assert (found["code"], found["oom_killed"], found["reason"]) == (137, True, "out of memory")


def test_a_full_disk_costs_bytes_that_are_counted_and_not_the_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, Any] = {"directory": str(tmp_path)}
    writer = keeper._Log(state)
    writer.append(STDOUT, b"one")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        writer.append(STDOUT, b"lost")
        writer.append(STDOUT, b"gone")
    writer.append(STDERR, b"two")
    os.close(state["log"])
    dropped: list[int] = []
    assert logged(tmp_path, dropped=dropped.append) == b"onetwo"
    assert dropped == [8]
    assert writer.position == 14
