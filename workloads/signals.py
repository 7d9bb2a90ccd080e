"""SIGTERM and SIGINT ask a server to drain."""

from __future__ import annotations

from _signal import SIGINT, SIGPIPE, SIGTERM, set_wakeup_fd, signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def on_termination(callback: Callable[[], None], wake: int) -> None:
    """Call back, on the main thread, at SIGTERM and SIGINT.

    Args:
        callback: called between two bytecodes of whatever runs then: it should do next to nothing.
        wake: a pipe that gets a byte. Python runs handlers on the main thread alone, and if the kernel gives the signal
            to another thread, the main one would sleep on in its system call (signal.set_wakeup_fd).
    """
    set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (SIGTERM, SIGINT):
        signal(number, lambda _number, _frame: callback())
