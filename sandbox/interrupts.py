"""Interrupts that wait: what undoes and removes is not stopped half way by a second Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back for the time of a block; the first that came takes effect at its end.

    By handlers, not by pthread_sigmask(3): a signal that another thread takes is handled in the main one as well, where
    it would interrupt in spite of a mask (see the library's `signal`, "Signals and threads"). Outside of the main
    thread, which no signal interrupts, this does nothing. Blocks may be nested.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    # A handler that was not set from Python reads as None and could not be put back; one that ignores stays.
    replaced = [number for number in _HELD if signal.getsignal(number) not in (None, signal.SIG_IGN)]
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
