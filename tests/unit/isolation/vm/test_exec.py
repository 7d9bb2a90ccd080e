"""Test a command over an SSH channel: its streams, its end, and a machine that is switched off."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError
from sandbox.isolation.base import WindowSize
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.relay import Relay, collect
from sandbox.isolation.vm import exec as vm_exec
from sandbox.isolation.vm.exec import Command, refusal


class Channel:
    """The part of paramiko's Channel that is used, with its other end."""

    def __init__(self) -> None:
        self.ready_read, self.ready_write = os.pipe()
        self.buffers = {"out": bytearray(), "err": bytearray()}
        self.sent = bytearray()
        self.takes = 1 << 20
        self.eof_received = self.closed = self.shut = False
        self.status_event = threading.Event()
        self.exit_status = -1
        self.size: tuple[int, int] | None = None

    def says(self, stream: str, data: bytes) -> None:
        self.buffers[stream] += data
        os.write(self.ready_write, b".")

    def ends(self, code: int) -> None:
        self.exit_status = code
        self.status_event.set()
        self.eof_received = True
        os.write(self.ready_write, b".")

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds < 5

    def fileno(self) -> int:
        return self.ready_read

    def _take(self, stream: str, size: int) -> bytes:
        if not self.buffers[stream] and not self.eof_received and not self.closed:
            raise TimeoutError
        data, self.buffers[stream] = bytes(self.buffers[stream][:size]), self.buffers[stream][size:]
        return data

    def recv(self, size: int) -> bytes:
        return self._take("out", size)

    def recv_stderr(self, size: int) -> bytes:
        return self._take("err", size)

    def recv_ready(self) -> bool:
        return bool(self.buffers["out"])

    def recv_stderr_ready(self) -> bool:
        return bool(self.buffers["err"])

    def exit_status_ready(self) -> bool:
        return self.status_event.is_set()

    def send(self, data: bytes) -> int:
        if self.closed:
            raise OSError("Socket is closed")
        if not self.takes:
            raise TimeoutError
        taken = data[: self.takes]
        self.sent += taken
        return len(taken)

    def shutdown_write(self) -> None:
        self.shut = True

    def resize_pty(self, width: int, height: int) -> None:
        self.size = (height, width)

    def close(self) -> None:
        self.closed = True
        os.write(self.ready_write, b".")


@pytest.fixture
def channel() -> Iterator[Channel]:
    made = Channel()
    yield made
    os.close(made.ready_read)
    os.close(made.ready_write)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_exec, "LOOK_EVERY", 0.02)


def command(channel: Channel, alive: Callable[[], bool] = lambda: True, kill: Callable[[], object] = int) -> Command:
    return Command(cast(Any, channel), alive, kill)


def test_both_streams_arrive_apart_and_whole(channel: Channel) -> None:
    first, second = bytes(range(256)) * 400, b"no line feed"

    def speak() -> None:
        for at in range(0, len(first), 30_000):
            channel.says("out", first[at : at + 30_000])
            time.sleep(0.005)
        channel.says("err", second)
        channel.ends(7)

    thread = threading.Thread(target=speak)
    thread.start()
    done = collect(command(channel), ["x"], 10)
    thread.join()
    assert (done.exit_code, done.stdout, done.stderr) == (7, first, second)


def test_what_came_last_is_read_after_the_end(channel: Channel) -> None:
    running = command(channel)
    channel.says("out", b"last")
    channel.says("err", b"words")
    channel.ends(0)
    assert [running.read(), running.read(), running.read()] == [(STDOUT, b"last"), (STDERR, b"words"), (STDOUT, b"")]


def test_the_first_line_alone_is_the_guests(channel: Channel) -> None:
    channel.says("err", b"@0a started\nthe command's own\n")
    running = command(channel)
    assert running.first_line(terminal=False) == "@0a started"
    assert running.read() == (STDERR, b"the command's own\n")
    channel.says("out", b"@0a not-found\r\n")
    assert running.first_line(terminal=True) == "@0a not-found"


def test_a_guest_that_says_nothing_is_not_waited_for(channel: Channel) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        command(channel, lambda: False).first_line(terminal=False)


def test_a_machine_that_ends_ends_the_command(channel: Channel) -> None:
    answers = iter([True, True])
    with pytest.raises(EngineError, match="ended before the command did"):
        collect(command(channel, lambda: next(answers, False)), ["x"], 10)


def test_input_goes_in_whole_and_ends(channel: Channel) -> None:
    channel.takes = 3
    running = command(channel)
    assert running.write(b"0123456789")
    running.close_write()
    assert (bytes(channel.sent), channel.shut) == (b"0123456789", True)
    channel.takes = 0
    answers = iter([True, True])
    assert not command(channel, lambda: next(answers, False)).write(b"x"), "the machine has ended"
    channel.closed = True
    assert not running.write(b"x")


def test_a_time_limit_ends_the_command(channel: Channel) -> None:
    killed: list[int] = []
    with pytest.raises(TimeoutError, match=r"'x' took longer than 0\.05 s"):
        collect(command(channel, kill=lambda: killed.append(1)), ["x"], 0.05)
    assert killed == [1]
    assert channel.closed


def test_output_that_nobody_reads_ends_it_as_by_sigpipe(channel: Channel) -> None:
    def refuse(_data: bytes) -> None:
        raise BrokenPipeError

    killed: list[int] = []
    running = command(channel, kill=lambda: killed.append(1))
    relay = Relay(running, stdin=None, stdout=refuse, stderr=refuse, terminal=False)
    channel.says("out", b"y\n")
    assert relay.wait(10) == 128 + signal.SIGPIPE
    assert killed == [1]


def test_a_terminal_is_resized(channel: Channel) -> None:
    command(channel).resize(WindowSize(rows=24, columns=80))
    assert channel.size == (24, 80)


def test_refusals_are_the_errors_of_every_level() -> None:
    assert isinstance(refusal("not-found", "x", "/"), CommandNotFoundError)
    assert isinstance(refusal("not-executable", "x", "/"), CannotInvokeError)
    assert "/nowhere" in refusal("no-directory", "x", "/nowhere").message
    assert "pids-limit" in (refusal("no-room", "x", "/").hint or "")
    assert refusal("", "x", "/").message.endswith("it gave no reason")
