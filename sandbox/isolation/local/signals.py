"""Signals to the workload of a local sandbox, through its init (tini(1)) if that forwards them."""

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
"""Signals that tini does not forward to its child: it waits for all others. SIGSTOP cannot be caught."""

_BIRTH = 1.0
"""Seconds to wait for an init that was just started to start its child."""


def send(init: int, number: int) -> None:
    """Send a signal to the workload; directly to the init's child if the init would not forward it.

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
            # Checked again with the pidfd open: the pid may have been reused.
            if child in _children(init):
                signal.pidfd_send_signal(pidfd, number)
                return
        finally:
            os.close(pidfd)
    raise ProcessLookupError


def _children(pid: int) -> list[int]:
    """Return the children of a process, oldest first: the init's own child comes before adopted orphans."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        raise ProcessLookupError from None
    return [int(word) for word in text.split()]
