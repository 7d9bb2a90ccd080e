"""Signals to the workload of a local sandbox, by way of its init (tini(1)) where that passes them on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

NOT_PASSED_ON = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSTOP,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGCHLD,
    }
)
"""What tini keeps to itself: it waits for all other signals, and sends them to its child. SIGSTOP nobody sees."""

_BIRTH = 1.0
"""Seconds that an init which has just been started gets to start its child."""


def send(init: int, number: int) -> None:
    """Send a signal to the workload; one that the init would not pass on goes to its child directly.

    Raises:
        ValueError: there is no such signal.
        ProcessLookupError: the init, or its child, is gone.
    """
    try:
        known = signal.Signals(number)
    except ValueError:
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            raise ValueError(f"there is no signal {number}") from None
        os.kill(init, number)
        return
    if known not in NOT_PASSED_ON:
        os.kill(init, number)
        return
    deadline = time.monotonic() + _BIRTH
    while not _children(init) and time.monotonic() < deadline:
        time.sleep(0.002)
    for child in _children(init):
        pidfd = os.pidfd_open(child)
        try:
            # Asked again with the descriptor in hand: the number may have become another process's.
            if child in _children(init):
                signal.pidfd_send_signal(pidfd, number)
                return
        finally:
            os.close(pidfd)
    raise ProcessLookupError


def _children(pid: int) -> list[int]:
    """Children of a process, oldest first: the init's own child comes before orphans that it took in."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        raise ProcessLookupError from None
    return [int(word) for word in text.split()]
