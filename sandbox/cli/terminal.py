"""The user's terminal, lent to a command inside: raw while it lasts, its size passed on, and always given back."""

from __future__ import annotations

import os
import queue
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sandbox.cli import interrupt
from sandbox.errors import SpecError
from sandbox.isolation.base import WindowSize

FALLBACK = WindowSize(rows=24, columns=80)


def require() -> None:
    """Refuse to go on where standard input is no terminal.

    Raises:
        SpecError
    """
    if not os.isatty(sys.stdin.fileno()):
        raise SpecError("the input device is not a TTY", "leave out -t, or run it in a terminal")


def size() -> WindowSize:
    """The terminal's size; 24 by 80 where it has none to tell (a serial line)."""
    try:
        found = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return FALLBACK
    if not (found.lines and found.columns):
        return FALLBACK
    return WindowSize(rows=found.lines, columns=found.columns)


@contextmanager
def raw() -> Iterator[None]:
    """The terminal in raw mode for the time of a block: every byte typed goes to the command, Ctrl-C too.

    It is given back as it was (termios(3)), also when the block ends by an error or by a signal. SIGQUIT, whose default
    is to end us on the spot, unwinds like SIGTERM meanwhile. SIGKILL cannot be helped: `reset` mends the terminal.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    previous = signal.signal(signal.SIGQUIT, interrupt)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        # A shell may have put us into the background meanwhile: setting the terminal would then stop us (SIGTTOU).
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            signal.signal(signal.SIGQUIT, previous)


@contextmanager
def resizes(tell: Callable[[WindowSize], None]) -> Iterator[None]:
    """Tell of the terminal's size whenever it changes, and once at the beginning, for the time of a block.

    The signal's handler only leaves a note for a thread: what tells an engine takes locks that the interrupted code may
    hold.
    """
    notes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # the only queue that may be used in a signal handler

    def serve() -> None:
        while notes.get():
            with suppress(Exception):  # the command may have ended meanwhile, and its size matters no more
                tell(size())

    thread = threading.Thread(target=serve, daemon=True)
    previous = signal.signal(signal.SIGWINCH, lambda _number, _frame: notes.put(True))
    thread.start()
    try:
        notes.put(True)  # it may have changed between the look before the command and now
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)
        notes.put(False)
        thread.join(timeout=1.0)
