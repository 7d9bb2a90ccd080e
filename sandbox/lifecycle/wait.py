"""Wait for a workload's end."""

from __future__ import annotations

import time
from contextlib import suppress

from sandbox.errors import NotFoundError
from sandbox.lifecycle.find import Reference, get
from sandbox.state.store import Store

_SETTLE = 2.0
"""Seconds within which whoever watches a sandbox has noted the exit code of one that has just ended."""
_PAUSE = 0.02


def wait(reference: Reference, timeout: float | None = None) -> int | None:
    """Wait for the end, and return the exit code, None if it cannot be known.

    Args:
        reference: which.
        timeout: seconds; None waits for ever.

    Raises:
        NotFoundError: there is none.
        TimeoutError
    """
    running = get(reference)
    code = running.sandbox.wait(timeout)
    deadline = time.monotonic() + _SETTLE
    while code is None and time.monotonic() < deadline:
        with suppress(NotFoundError):  # removed meanwhile, by `run --rm` for one
            code = Store().load(running.record.id).exit_code
        if code is None:
            time.sleep(_PAUSE)
    return code
