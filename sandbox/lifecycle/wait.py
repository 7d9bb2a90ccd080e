"""Wait for a workload's end."""

from __future__ import annotations

import time
from contextlib import suppress

from sandbox.errors import NotFoundError
from sandbox.lifecycle.find import Reference, get
from sandbox.state.store import Store

_SETTLE = 2.0
"""Seconds to wait for the keeper of a sandbox that has just ended to record its exit code."""
_PAUSE = 0.02


def wait(reference: Reference, timeout: float | None = None) -> int | None:
    """Wait for the workload's end and return its exit code, None if unknown.

    Args:
        reference: the sandbox.
        timeout: in seconds; None waits for ever.

    Raises:
        NotFoundError: the sandbox does not exist.
        TimeoutError
    """
    running = get(reference)
    code = running.sandbox.wait(timeout)
    deadline = time.monotonic() + _SETTLE
    while code is None and time.monotonic() < deadline:
        with suppress(NotFoundError):  # it was removed meanwhile, for example by `run --rm`
            code = Store().load(running.record.id).exit_code
        if code is None:
            time.sleep(_PAUSE)
    return code
