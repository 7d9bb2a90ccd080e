"""Pause and unpause a sandbox."""

from __future__ import annotations

from sandbox.lifecycle.find import Reference, held
from sandbox.state.store import Store

PATIENCE = 10.0
"""Seconds to wait for another command that holds the sandbox's lock; `stop` may take as long."""


def pause(reference: Reference) -> None:
    """Stop all processes of a sandbox until `unpause`. Idempotent.

    Raises:
        NotFoundError, BusyError
        EngineError: it is not running, or its level cannot pause it.
    """
    with held(reference, PATIENCE) as running:
        # Saved first: an interruption then leaves a record that is corrected when it is read, and never a paused
        # sandbox that listings show as running.
        running.record.paused = True
        Store().save(running.record)
        running.sandbox.pause()


def unpause(reference: Reference) -> None:
    """Resume a paused sandbox. Idempotent.

    Raises:
        NotFoundError, BusyError, EngineError
    """
    with held(reference, PATIENCE) as running:
        running.sandbox.unpause()
        if running.record.paused:
            running.record.paused = False
            Store().save(running.record)
