"""Hold a sandbox still, and let it go on."""

from __future__ import annotations

from sandbox.lifecycle.find import Reference, held
from sandbox.state.store import Store

PATIENCE = 10.0
"""Seconds to wait for another command that works on the sandbox; `stop` may take as long."""


def pause(reference: Reference) -> None:
    """Hold every process of it still, until `unpause`. Idempotent.

    Raises:
        NotFoundError, BusyError
        EngineError: it is not running, or its level cannot.
    """
    with held(reference, PATIENCE) as running:
        # Noted first: an interrupt in between leaves a note that the next look finds untrue, never a paused sandbox
        # that listings show as running.
        running.record.paused = True
        Store().save(running.record)
        running.sandbox.pause()


def unpause(reference: Reference) -> None:
    """Let it go on. Idempotent.

    Raises:
        NotFoundError, BusyError, EngineError
    """
    with held(reference, PATIENCE) as running:
        running.sandbox.unpause()
        if running.record.paused:
            running.record.paused = False
            Store().save(running.record)
