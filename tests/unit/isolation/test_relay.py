"""Test the relay with a backend of pipes: bytes in both directions, a closed reader, the end from either side."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from sandbox.isolation.base import WindowSize
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.relay import END_OF_INPUT, Backend, Relay, collect, to_descriptor


class Fake(Backend):
    """A command whose output is put into a queue; an empty piece ends it."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self.took = b""
        self.calls: list[str] = []
        self.code = 0

    def read(self) -> tuple[int, bytes]:
        return self.said.get()

    def write(self, data: bytes) -> bool:
        self.took += data
        return b"enough" not in data

    def close_write(self) -> None:
        self.calls.append("close_write")

    def resize(self, size: WindowSize) -> None:
        self.calls.append(f"resize {size.rows}x{size.columns}")

    def close_read(self, stream: int) -> None:
        self.calls.append(f"close_read {stream}")
        self.say(STDOUT, b"")
        self.code = 141

    def end(self) -> None:
        self.calls.append("end")
        self.say(STDOUT, b"")

    def exit_code(self, _timeout: float | None) -> int:
        return self.code

    def close(self) -> None:
        self.calls.append("close")

    def say(self, stream: int, data: bytes) -> None:
        self.said.put((stream, data))


def ignore(_data: bytes) -> None:
    """A sink."""


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_the_streams_stay_apart_and_the_code_is_its_own(fake: Fake) -> None:
    for stream, data in ((STDOUT, b"out\xff"), (STDERR, b"err"), (STDOUT, b"more"), (STDOUT, b"")):
        fake.say(stream, data)
    fake.code = 7
    found = collect(fake, ["it"], None)
    assert (found.exit_code, found.stdout, found.stderr) == (7, b"out\xffmore", b"err")
    assert fake.calls == ["close"]


def test_a_time_limit_ends_it(fake: Fake) -> None:
    with pytest.raises(TimeoutError, match=r"'it' took longer than 0\.1 s"):
        collect(fake, ["it"], 0.1)
    assert fake.calls == ["end", "close"]


@pytest.mark.parametrize("terminal", [False, True])
def test_input_goes_in_and_its_end_too(fake: Fake, pipe: tuple[int, int], terminal: bool) -> None:
    relay = Relay(fake, stdin=pipe[0], stdout=ignore, stderr=ignore, terminal=terminal)
    os.write(pipe[1], b"typed")
    os.close(pipe[1])
    deadline = time.monotonic() + 5
    while fake.took != b"typed" + END_OF_INPUT * terminal or ("close_write" in fake.calls) == terminal:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fake.say(STDOUT, b"")
    assert relay.wait() == 0


def test_a_command_that_takes_no_more_input_goes_on(fake: Fake, pipe: tuple[int, int]) -> None:
    out: list[bytes] = []
    relay = Relay(fake, stdin=pipe[0], stdout=out.append, stderr=out.append, terminal=False)
    os.write(pipe[1], b"enough")
    fake.say(STDOUT, b"said")
    fake.say(STDOUT, b"")
    assert relay.wait() == 0
    assert out == [b"said"]


def test_a_reader_that_went_away_is_felt_inside(fake: Fake, pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    relay = Relay(fake, stdin=None, stdout=to_descriptor(pipe[1]), stderr=ignore, terminal=False)
    fake.say(STDOUT, b"x")
    assert relay.wait() == 141
    assert fake.calls == [f"close_read {STDOUT}", "close"]


def test_closing_does_not_wait_for_a_reader_that_reads_no_more(fake: Fake, pipe: tuple[int, int]) -> None:
    relay = Relay(fake, stdin=None, stdout=to_descriptor(pipe[1]), stderr=ignore, terminal=False)
    fake.say(STDOUT, b"x" * 1_000_000)
    time.sleep(0.1)
    begin = time.monotonic()
    relay.close()
    assert time.monotonic() - begin < 1
    assert fake.calls == ["end"], "a thread still uses it"
    os.close(pipe[0])
    relay._threads[0].join(10)  # before its descriptor's number is reused


def test_a_writer_that_does_not_block_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    found = bytearray()

    def take() -> None:
        while len(found) < 1_000_000:
            found.extend(os.read(pipe[0], 65536))

    thread = threading.Thread(target=take)
    thread.start()
    to_descriptor(pipe[1])(b"x" * 1_000_000)
    thread.join(10)
    assert found == b"x" * 1_000_000


def test_what_the_backend_raises_is_raised_to_who_waits(fake: Fake) -> None:
    def fail() -> tuple[int, bytes]:
        raise ValueError("the engine talks nonsense")

    fake.read = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="nonsense"):
        Relay(fake, stdin=None, stdout=ignore, stderr=ignore, terminal=False).wait()
    assert fake.calls[0] == "end"


def test_only_a_terminal_has_a_size(fake: Fake) -> None:
    for terminal in (False, True):
        relay = Relay(fake, stdin=None, stdout=ignore, stderr=ignore, terminal=terminal)
        relay.resize(WindowSize(rows=10, columns=20))
        relay.close()
        relay.resize(WindowSize(rows=11, columns=20))
    assert [call for call in fake.calls if call.startswith("resize")] == ["resize 10x20"]
