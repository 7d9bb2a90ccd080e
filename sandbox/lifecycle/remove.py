"""Remove sandboxes: one path for one and for many, for those that end and for those that never came up.

Ending a sandbox is mostly waiting: for its processes to die, for the kernel to take its groups and links apart. So of
several all are killed first, and only then removed one by one, when most of that waiting is over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress

from sandbox.errors import BusyError, NotFoundError, SandboxError, StoreError
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import deferred
from sandbox.isolation.base import Batched
from sandbox.lifecycle import lab
from sandbox.lifecycle.find import Reference, Running, held
from sandbox.phases import Status
from sandbox.state.record import Record
from sandbox.state.store import Store

PATIENCE = 2.0
"""Seconds that a removal waits for another command, which may only be looking: `prune` locks what it looks at."""


def remove(reference: Reference, *, force: bool = False) -> None:
    """Remove a sandbox and everything it has; a running one only with `force`.

    Raises:
        NotFoundError, BusyError, EngineError
    """
    (error,) = remove_all([reference], force=force)
    if error is not None:
        raise error


def remove_all(references: Sequence[Reference], *, force: bool = False) -> list[SandboxError | None]:
    """Remove sandboxes, each under its lock; one that cannot be removed does not hinder the others.

    Args:
        references: which; one that is named twice is removed once.
        force: also running ones; then one that is gone already is no error. Nor is that one by its handle.

    Returns:
        For each reference why its sandbox is still there, None when it is gone.
    """
    errors: list[SandboxError | None] = [None] * len(references)
    taken: dict[str, Running] = {}
    places: dict[str, list[int]] = {}
    with ExitStack() as locks:
        for place, reference in enumerate(references):
            try:
                ident = reference.record.id if isinstance(reference, Running) else Store().resolve(reference)
                if ident not in taken:
                    taken[ident] = _take(reference, locks, force=force)
                places.setdefault(ident, []).append(place)
            except NotFoundError as error:
                errors[place] = None if force or isinstance(reference, Running) else error
            except SandboxError as error:
                errors[place] = error
        with deferred():
            failed = remove_held(taken.values())
            try:
                if len(failed) < len(taken):
                    lab.remove_unused()
            except SandboxError as error:
                failed = dict.fromkeys(taken, error) | failed
    for ident, reason in failed.items():
        for place in places[ident]:
            errors[place] = reason
    return errors


def _take(reference: Reference, locks: ExitStack, *, force: bool) -> Running:
    """Lock a sandbox until `locks` are released.

    Raises:
        NotFoundError, BusyError, StoreError
    """
    with ExitStack() as lock:
        # Whoever holds the handle has made it, and waits for its turn.
        patience = None if isinstance(reference, Running) else PATIENCE
        running = lock.enter_context(held(reference, patience))
        if not force and running.sandbox.state().running:
            raise BusyError(f"{running.record.name} is running", f"sandbox stop {running.record.name}, or rm -f")
        locks.push(lock.pop_all())
    return running


def remove_held(sandboxes: Collection[Running]) -> dict[str, SandboxError]:
    """Remove sandboxes of which the caller holds the locks.

    Returns:
        By id why one is still there. Its record stays with it, so that the next try finds it.
    """
    failed: dict[str, SandboxError] = {}
    with deferred():
        before = {running.record.id: running.record.status for running in sandboxes}
        for running in sandboxes:
            _mark_removing(running.record)
        batched = [one.sandbox for one in sandboxes if isinstance(one.sandbox, Batched)] if len(sandboxes) > 1 else []
        for begin in (Batched.kill_soon, Batched.remove_soon):
            for sandbox in batched:
                begin(sandbox)
        for running in sandboxes:
            record = running.record
            try:
                running.sandbox.remove()
                reached(Failpoint.RESOURCES_REMOVED)
                if record.spec.publish:
                    lab.unpublish(record.id)
            except SandboxError as error:
                failed[record.id] = error
                with suppress(SandboxError):
                    if running.sandbox.state().running:  # its engine is away, say, and it serves as before
                        _note(record, before[record.id])
        failed |= Store().remove(ident for ident in before if ident not in failed)
    return failed


def _mark_removing(record: Record) -> None:
    """Mark as being removed, so that a crash leaves it recognisable. A full disk does not hinder the removal."""
    if record.status is not Status.REMOVING:
        reached(Failpoint.REMOVING)
        _note(record, Status.REMOVING)


def _note(record: Record, status: Status) -> None:
    with suppress(StoreError):
        record.status = status
        Store().save(record)
