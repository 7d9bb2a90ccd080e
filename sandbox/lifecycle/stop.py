"""Stop a workload, and record how it ended. The sandbox and its log are kept."""

from __future__ import annotations

from contextlib import suppress

from sandbox.errors import NotFoundError
from sandbox.failpoints import Failpoint, reached
from sandbox.isolation import ending
from sandbox.lifecycle import lab
from sandbox.lifecycle.find import Reference, Running, held
from sandbox.phases import Status
from sandbox.spec import GRACE
from sandbox.state.store import Store


def stop(reference: Reference, grace: float = GRACE) -> int | None:
    """Send SIGTERM to the workload, and SIGKILL after `grace` seconds; return the exit code, None if unknown.

    Raises:
        NotFoundError, EngineError
    """
    with held(reference) as running:
        reached(Failpoint.ENDING)
        code = running.sandbox.stop(grace)
        reached(Failpoint.ENDED)
        _note(running, code)
    return code


def note_end(ident: str, code: int | None) -> None:
    """Record that a workload ended by itself, with its exit code if known, and withdraw its ports.

    Raises:
        EngineError, StoreError
    """
    with suppress(NotFoundError), held(ident) as running:  # it may have been removed by now
        _note(running, code)


def _note(running: Running, code: int | None) -> None:
    record = running.record
    if record.spec.publish:
        lab.unpublish(record.id)  # new connections are then refused at once
    record.status = Status.EXITED
    if record.exit_code is None:
        record.exit = ending.noted(record.directory, code)
    Store().save(record)
    reached(Failpoint.SAVED_EXITED)
