"""Deferred interrupts, interruptible waits, and failpoints, all of which are documented."""

# ruff: noqa: PT012 - the block that is held back is the statement under test
from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from sandbox import failpoints
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import LOOK_EVERY, deferred, wait_event, wait_readable

ROOT = Path(__file__).resolve().parents[2]


class Told(BaseException):
    """Raised by the signal handler of these tests."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    def tell(number: int, _frame: FrameType | None) -> None:
        raise Told(number)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(Told) as caught, deferred():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        done.append("everything")
    assert done == ["everything"]
    assert caught.value.args == (signal.SIGTERM,), "the first that came takes effect, once"
    with pytest.raises(Told):
        send(signal.SIGINT)


def test_blocks_may_be_nested() -> None:
    done = []
    with pytest.raises(Told), deferred():
        with deferred():
            send(signal.SIGINT)
        done.append("outer")
    assert done == ["outer"]


def test_an_error_of_the_block_is_not_lost() -> None:
    with pytest.raises(Told) as caught, deferred():
        send(signal.SIGINT)
        raise ValueError("of the block")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="of the block"), deferred():
        raise ValueError("of the block")


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with deferred():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_default_ends_the_process_afterwards() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with deferred():
            send(signal.SIGTERM)
            os.write(writing, b"done")
        os._exit(1)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert os.read(reading, 10) == b"done"
    os.close(reading)


def test_other_threads_are_left_alone() -> None:
    done = []

    def work() -> None:
        with deferred():
            done.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]


def test_nobody_listens_in_production() -> None:
    assert failpoints.listener is None
    reached(Failpoint.STARTED)


def test_every_failpoint_is_explained() -> None:
    text = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text, re.M)
    assert [(int(number), name) for number, name in rows] == [(one.value, one.name) for one in Failpoint]
    assert all(one.what for one in Failpoint)


def wait_for_pipe() -> None:
    reading, writing = os.pipe()
    try:
        wait_readable(reading, 60)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("wait", [wait_for_pipe, lambda: wait_event(threading.Event(), 60)])
def test_a_signal_that_breaks_off_no_system_call_is_noticed(wait: Callable[[], object]) -> None:
    """Simulate a signal that arrives just before the call: the main thread blocks it, another thread receives it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:

        def take() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)

        other = threading.Thread(target=take)
        began = time.monotonic()
        other.start()
        with pytest.raises(Told):
            wait()
        other.join()
        assert time.monotonic() - began < 20 * LOOK_EVERY
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_waits_end_when_the_time_is_over_or_it_is_there() -> None:
    event = threading.Event()
    reading, writing = os.pipe()
    try:
        for timeout in (0, 0.01, LOOK_EVERY * 1.1):
            began = time.monotonic()
            assert not wait_readable(reading, timeout)
            assert not wait_event(event, timeout)
            assert time.monotonic() - began >= 2 * timeout
        event.set()
        os.close(writing)
        assert wait_readable(reading, 0)
        assert wait_readable(reading)
        assert wait_event(event, 0)
        assert wait_event(event)
    finally:
        os.close(reading)
