"""Signal handling: SIGTERM and SIGINT make a server drain.

`_signal` is the C half of `signal`; the Python half only makes enums of the numbers, and takes 4 ms to import.
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
    """Call a function on the main thread at SIGTERM and SIGINT.

    Args:
        callback: the function; it runs between two bytecodes of other code, and should do very little.
        wake: a pipe to which a byte is written. Python runs handlers on the main thread only. If the kernel delivers
            the signal to another thread, the byte wakes the main one from its system call (signal.set_wakeup_fd).
    """
    _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in _TERMINATION:
        _signal.signal(number, lambda _number, _frame: callback())


def wake_on(number: int) -> None:
    """Make a signal write a byte to the wake-up pipe, and do nothing else."""
    _signal.signal(number, lambda _number, _frame: None)


def ignore(number: int) -> None:
    """Ignore a signal. If it is SIGCHLD, the kernel reaps the children (sigaction(2))."""
    _signal.signal(number, _signal.SIG_IGN)


def restore(number: int) -> None:
    """Restore the default action of a signal."""
    _signal.signal(number, _signal.SIG_DFL)


def raise_signal(number: int) -> None:
    """Deliver a signal to the calling thread before this returns."""
    _signal.raise_signal(number)


def hold_termination() -> None:
    """Block SIGTERM and SIGINT in this thread and in the children that it forks."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _TERMINATION)


def release_termination() -> None:
    """Unblock SIGTERM and SIGINT; pending ones are delivered now."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _TERMINATION)
