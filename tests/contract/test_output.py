"""What a workload writes reaches run, logs and the Python interface byte for byte, once, in order, at every level."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest

import sandbox as interface
from sandbox.isolation import driver, supervision
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.lifecycle.find import get

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 65536
MUCH = 100_000_000
MUCH_EMULATED = 2_000_000
"""Bytes; a guest that is emulated gets fewer of them."""
EMIT = """
import os, sys, time
size, pause, n, sent = int(sys.argv[1]), float(sys.argv[2]), 0, 0
while sent < size:
    data = (n.to_bytes(4, "big") + bytes(range(256)) * 256)[: min(65536, size - sent)]
    n, sent, view = n + 1, sent + len(data), memoryview(data)
    while view:
        view = view[os.write(1, view) :]
    time.sleep(pause)
"""
"""Writes so many bytes, every one of the 256, in numbered blocks: what is lost, doubled or out of order shows."""
PYTHON = ("python3", "-I", "-S", "-c")

_names = count()


def emitted(size: int) -> bytes:
    """What EMIT writes."""
    blocks = ((n.to_bytes(4, "big") + bytes(range(256)) * 256)[:BLOCK] for n in range(-(-size // BLOCK)))
    return b"".join(blocks)[:size]


def digest(data: bytes) -> tuple[int, str]:
    """Of a size that a failed assertion can show."""
    return len(data), hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def connected(level: str) -> None:
    """Skip what is not connected to the keeper yet; goes with the last such level."""
    module = import_module(type(driver(level)).__module__.rpartition(".")[0] + ".sandbox")
    if any(
        "pieces" in vars(one)
        for one in vars(module).values()
        if isinstance(one, type) and one.__module__ == module.__name__
    ):
        pytest.skip(f"{level} is not connected to the keeper yet")


@pytest.fixture
def much(level: str) -> int:
    return MUCH_EMULATED if level == "vm" else MUCH


@pytest.fixture
def name(level: str) -> Iterator[str]:
    """A name of its own for the test's sandbox, which is removed in the end."""
    name = f"output-{level}-{next(_names)}"
    yield name
    sandbox("rm", "-f", name)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "sandbox", *argv]


def sandbox(*argv: str, timeout: float = 250) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*argv), cwd=ROOT, capture_output=True, timeout=timeout, check=False)


def run(level: str, *argv: str, options: tuple[str, ...] = ("--rm",)) -> subprocess.CompletedProcess[bytes]:
    return sandbox("run", *options, "--isolation", level, "--", *argv)


def detached(level: str, name: str, *argv: str) -> None:
    done = run(level, *argv, options=("-d", "--name", name))
    assert done.returncode == 0, done.stderr


def comes_true(condition: Callable[[], object], timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def logged(name: str) -> bytes:
    return b"".join(get(name).sandbox.logs())


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, MUCH])
def test_every_byte_reaches_run(level: str, size: int, much: int) -> None:
    size = min(size, much)
    done = run(level, *PYTHON, EMIT, str(size), "0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert digest(done.stdout) == digest(emitted(size))


def test_a_paced_writer_is_seen_once_by_all(level: str, name: str) -> None:
    size = 40 * BLOCK + 7
    detached(level, name, *PYTHON, EMIT, str(size), "0.05")
    followed = sandbox("logs", "-f", name)
    assert (digest(followed.stdout), followed.stderr) == (digest(emitted(size)), b"")
    assert digest(sandbox("logs", name).stdout) == digest(emitted(size))
    assert digest(interface.get(name).logs()) == digest(emitted(size))
    done = run(level, *PYTHON, EMIT, str(size), "0.01")
    assert digest(done.stdout) == digest(emitted(size))


def test_the_streams_stay_apart_and_need_no_final_newline(level: str, name: str) -> None:
    script = "sleep .3; echo hello; printf 'err\\377' >&2; printf world; exit 3"
    done = run(level, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hello\nworld", b"err\xff")
    detached(level, name, "sh", "-c", script)
    for options in (("-f",), (), ("--tail", "3"), ("--since", "1h")):
        found = sandbox("logs", *options, name)
        assert (found.returncode, found.stdout, found.stderr) == (0, b"hello\nworld", b"err\xff"), options
    pieces = list(get(name).sandbox.pieces())
    assert b"".join(piece.data for piece in pieces if piece.stream == STDOUT) == b"hello\nworld"
    assert b"".join(piece.data for piece in pieces if piece.stream == STDERR) == b"err\xff"


def test_lines_of_a_megabyte(level: str, name: str) -> None:
    script = "import os\nfor letter in b'abc': os.write(1, b'') or print(chr(letter) * 1000000, flush=True)"
    detached(level, name, *PYTHON, script)
    lines = [letter * 1_000_000 + b"\n" for letter in (b"a", b"b", b"c")]
    assert digest(sandbox("logs", "-f", name).stdout) == digest(b"".join(lines))
    assert digest(sandbox("logs", "--tail", "2", name).stdout) == digest(b"".join(lines[1:]))
    stamped = sandbox("logs", "-t", "--tail", "1", name).stdout
    assert len(stamped) == 1_000_001 + len("2026-01-31T12:00:00.000000Z ")


def test_times(level: str, name: str) -> None:
    begin = time.time()
    detached(level, name, "sh", "-c", "echo one; sleep 2; echo two >&2; sleep .5; echo three")
    assert sandbox("wait", name).stdout == b"0\n"
    done = sandbox("logs", "-t", name)
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        stamp, _, word = line.decode().partition(" ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp)
        found[word] = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
    assert list(found) == ["one", "three", "two"]
    assert begin - 1 < found["one"] < found["two"] - 1 < time.time()
    between = f"{(found['one'] + found['two']) / 2:.6f}"
    assert sandbox("logs", "--since", between, name).stdout == b"three\n"
    assert sandbox("logs", "--until", between, name).stdout == b"one\n"
    assert sandbox("logs", "--since", between, "--until", between, name).stdout == b""
    assert sandbox("logs", "--tail", "1", name).stdout == b"three\n"
    assert sandbox("logs", "--tail", "0", name).stdout == b""


def test_the_outputs_can_be_opened_anew(level: str) -> None:
    script = (
        "echo a >/dev/stdout; echo b >/dev/stderr; echo c >/dev/fd/1; echo d >/proc/self/fd/2; echo e >>/dev/stdout\n"
        "python3 -I -S -c \"open('/dev/stdout','w').write('f'); open('/dev/stderr','a').write('g')\""
    )
    done = run(level, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nc\ne\nf", b"b\nd\ng")


def test_the_outputs_of_a_command_can_be_opened_anew(level: str, name: str) -> None:
    detached(level, name, "sleep", "600")
    script = "echo a >/dev/stdout; echo b >/dev/stderr"
    for options in ((), ("--root",)):
        done = sandbox("exec", *options, name, "sh", "-c", script)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"a\n", b"b\n"), options
    found = interface.get(name).exec(["sh", "-c", script])
    assert (found.exit_code, found.stdout, found.stderr) == (0, b"a\n", b"b\n")


def test_a_slow_reader_loses_nothing(level: str, much: int) -> None:
    argv = command("run", "--rm", "--isolation", level, "--", *PYTHON, EMIT, str(much), "0")
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = process.stdout.read(1)
        time.sleep(3)
        text += process.stdout.read()
    assert process.returncode == 0
    assert digest(text) == digest(emitted(much))


def test_a_reader_that_went_away_ends_run(level: str, name: str) -> None:
    argv = command("run", "--rm", "--isolation", level, "--name", name, "--", "yes")
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
    with pytest.raises(interface.NotFoundError):
        interface.get(name)


def test_a_reader_of_the_log_that_is_killed_is_not_missed(level: str, name: str) -> None:
    detached(level, name, "sh", "-c", "echo one; sleep 2; echo two; exit 5")
    with subprocess.Popen(command("logs", "-f", name), cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.kill()
    assert sandbox("wait", name).stdout == b"5\n"
    assert logged(name) == b"one\ntwo\n"


def test_a_command_that_is_killed_leaves_the_workload_and_its_log(level: str, name: str) -> None:
    argv = command("run", "--isolation", level, "--name", name, "--", "sh", "-c", "echo one; sleep 3; echo two; exit 5")
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.kill()
    assert sandbox("logs", "-f", name).stdout == b"one\ntwo\n"
    assert interface.get(name).wait(20) == 5


def test_a_killed_keeper_costs_what_is_written_later(level: str, name: str) -> None:
    detached(level, name, "sh", "-c", "echo one; sleep 600")
    assert comes_true(lambda: logged(name) == b"one\n")
    directory = get(name).record.directory
    found = supervision.holder(directory)
    assert found is not None
    os.kill(found, signal.SIGKILL)
    assert comes_true(lambda: supervision.holder(directory) is None)
    assert interface.get(name).running
    assert sandbox("logs", "-f", name).stdout == b"one\n"


def test_what_the_cap_dropped_is_said(level: str, name: str) -> None:
    if level == "vm":
        pytest.skip("an emulated guest takes too long to write so much")
    detached(level, name, *PYTHON, EMIT, str(MUCH), "0")
    assert sandbox("wait", name).stdout == b"0\n"
    done = sandbox("logs", name)
    (line,) = done.stderr.decode().splitlines()
    missing = int(line.split()[1])
    assert missing + len(done.stdout) == MUCH
    assert digest(done.stdout) == digest(emitted(MUCH)[missing:])
    directory = get(name).record.directory
    assert 32 << 20 < sum(path.stat().st_size for path in directory.glob("log*")) < 65 << 20


@pytest.mark.parametrize(("program", "code"), [("nosuch", 127), ("/etc/passwd", 126)])
def test_what_cannot_be_executed_is_said_in_our_words(level: str, program: str, code: int) -> None:
    done = run(level, program)
    assert (done.returncode, done.stdout) == (code, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("sandbox: ")
    assert program in line
    assert "tini" not in line


def test_a_start_that_fails_shows_all_that_was_said(level: str) -> None:
    script = "def serve():\n    raise ValueError('boom')\nprint('first', flush=True)\nserve()"
    done = run(level, *PYTHON, script, options=("--port", "8000"))
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (125, b"")
    # dockerd copies the two outputs apart, so that their order is not kept there.
    assert lines.count("first") == 1
    assert lines[0] == "first" or level in ("container", "gvisor")
    lines.remove("first")
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "ValueError: boom"
    assert lines[-1].startswith("sandbox: ")
