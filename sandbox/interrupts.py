"""Interrupts that wait, and waits that can be interrupted.

What undoes and removes is not stopped half way by a second Ctrl-C. And what waits without end looks up now and then: a
signal that comes after Python's last look and before the system call blocks is noticed only when that returns.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_EVERY = 0.5
"""Seconds of a slice of a long wait: the most that such a signal waits."""

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred(*more: signal.Signals) -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back for the time of a block; the first that came takes effect at its end.

    By handlers, not by pthread_sigmask(3): a signal that another thread takes is handled in the main one as well, where
    it would interrupt in spite of a mask (see the library's `signal`, "Signals and threads"). Outside of the main
    thread, which no signal interrupts, this does nothing. Blocks may be nested.

    Args:
        more: other signals to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    # A handler that was not set from Python reads as None and could not be put back; one that ignores stays.
    replaced = [number for number in (*_HELD, *more) if signal.getsignal(number) not in (None, signal.SIG_IGN)]
    before = {number: signal.signal(number, lambda got, frame: arrived.append((got, frame))) for number in replaced}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            first, frame = arrived[0]
            usual = before[signal.Signals(first)]
            if callable(usual):
                usual(first, frame)
            else:  # the default, which ends the process: only the kernel does that rightly
                os.kill(os.getpid(), first)


def wait_readable(descriptor: int, timeout: float | None = None) -> bool:
    """Wait until a descriptor can be read from, or is hung up; False when the time is over first.

    Args:
        descriptor: a pipe, or a pidfd, which can be read from once its process has ended.
        timeout: seconds; None waits for ever.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
        if poller.poll(max(0.0, left) * 1000):
            return True
        if left <= 0:
            return False


def wait_event(event: threading.Event, timeout: float | None = None) -> bool:
    """As `Event.wait`: whether it was set within so many seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
        if event.wait(max(0.0, left)):
            return True
        if left <= 0:
            return False
