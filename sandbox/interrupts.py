"""Defer signals while a block runs, and wait in a way that signals can interrupt.

Deferring keeps a second Ctrl-C from stopping a clean-up half way. Long waits are cut into slices, because a signal that
arrives after Python's last check and before the system call blocks is handled only when the call returns.
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
"""Seconds of a slice of a long wait, the longest that such a signal is delayed."""

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred(*more: signal.Signals) -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP during a block; the first one that arrived takes effect at its end.

    Handlers do this, not pthread_sigmask(3): Python runs the handler in the main thread even if another thread receives
    the signal, so a mask would not help (see `signal` in the standard library, "Signals and threads"). In other threads
    this does nothing, because signals do not interrupt them. Blocks may be nested.

    Args:
        more: further signals to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    # A handler that was not set from Python reads as None and could not be restored; ignored signals stay ignored.
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
            else:  # the default action, the end of the process, is left to the kernel
                os.kill(os.getpid(), first)


def wait_readable(descriptor: int, timeout: float | None = None) -> bool:
    """Wait until a descriptor is readable or hung up. Returns False on a timeout.

    Args:
        descriptor: a pipe, or a pidfd, which is readable once its process has ended.
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
    """Wait as `Event.wait` does, but interruptible by signals. Returns False on a timeout."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, deadline - time.monotonic())
        if event.wait(max(0.0, left)):
            return True
        if left <= 0:
            return False
