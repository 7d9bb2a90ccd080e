"""Signals: SIGTERM and SIGINT ask a server to drain.

`_signal` is the C half of `signal`; the Python half only makes enums of its numbers, and costs 4 ms to import.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # typeshed does not list it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIGCHLD: int = _signal.SIGCHLD
SIGINT: int = _signal.SIGINT
SIGKILL: int = _signal.SIGKILL
SIGSEGV: int = _signal.SIGSEGV
SIGTERM: int = _signal.SIGTERM

_TERMINATION = (SIGTERM, SIGINT)


def on_termination(callback: Callable[[], None], wake: int) -> None:
    """Call back, on the main thread, at SIGTERM and SIGINT.

    Args:
        callback: called between two bytecodes of whatever runs then: it should do next to nothing.
        wake: a pipe that gets a byte. Python runs handlers on the main thread alone, and if the kernel gives the signal
            to another thread, the main one would sleep on in its system call (signal.set_wakeup_fd).
    """
    _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in _TERMINATION:
        _signal.signal(number, lambda _number, _frame: callback())


def wake_on(number: int) -> None:
    """Let a signal do nothing but write its byte to the wake-up pipe."""
    _signal.signal(number, lambda _number, _frame: None)


def ignore(number: int) -> None:
    """SIG_IGN; for SIGCHLD it means that the kernel reaps (sigaction(2))."""
    _signal.signal(number, _signal.SIG_IGN)


def restore(number: int) -> None:
    """SIG_DFL."""
    _signal.signal(number, _signal.SIG_DFL)


def raise_signal(number: int) -> None:
    """Deliver a signal to the calling thread, before this returns."""
    _signal.raise_signal(number)


def hold_termination() -> None:
    """Keep SIGTERM and SIGINT waiting, for this thread and what it forks."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _TERMINATION)


def release_termination() -> None:
    """Deliver them again, those that waited first."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _TERMINATION)
