"""Remove sandboxes, one or many, whether they ended or failed to start.

Most of a removal is waiting: for processes to die, and for the kernel to remove cgroups and links. So several sandboxes
are all killed first, and then removed one by one, when most of the waiting is done.
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
"""Seconds that a removal waits for another command; that may only be `prune`, which locks a sandbox to look at it."""


def remove(reference: Reference, *, force: bool = False) -> None:
    """Remove a sandbox and all its resources; a running one only with `force`.

    Raises:
        NotFoundError, BusyError, EngineError
    """
    (error,) = remove_all([reference], force=force)
    if error is not None:
        raise error


def remove_all(references: Sequence[Reference], *, force: bool = False) -> list[SandboxError | None]:
    """Remove sandboxes, each under its lock; a failure does not affect the others.

    Args:
        references: the sandboxes; duplicates are allowed.
        force: remove running ones too, and accept names that do not exist. (A `Running` may always be gone already.)

    Returns:
        For each reference the error, None if the sandbox is gone.
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
        # A caller with a `Running` waits for ever.
        patience = None if isinstance(reference, Running) else PATIENCE
        running = lock.enter_context(held(reference, patience))
        if not force and running.sandbox.state().running:
            raise BusyError(f"{running.record.name} is running", f"sandbox stop {running.record.name}, or rm -f")
        locks.push(lock.pop_all())
    return running


def remove_held(sandboxes: Collection[Running]) -> dict[str, SandboxError]:
    """Remove sandboxes whose locks the caller holds.

    Returns:
        The errors by id. The record of such a sandbox is kept, so that the removal can be tried again.
    """
    failed: dict[str, SandboxError] = {}
    with deferred():
        before = {running.record.id: running.record.status for running in sandboxes}
        several: list[Batched] = []
        for running in sandboxes:
            _mark_removing(running.record)
            if len(sandboxes) > 1 and isinstance(running.sandbox, Batched):
                running.sandbox.kill_soon()  # its processes die while the next one is marked
                several.append(running.sandbox)
        for sandbox in several:
            sandbox.remove_soon()
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
                    if running.sandbox.state().running:  # for example, its engine does not answer
                        _note(record, before[record.id])
        failed |= Store().remove(ident for ident in before if ident not in failed)
    return failed


def _mark_removing(record: Record) -> None:
    """Mark as being removed, so that a crash leaves it recognisable. A full disk does not prevent the removal."""
    if record.status is not Status.REMOVING:
        reached(Failpoint.REMOVING)
        _note(record, Status.REMOVING)


def _note(record: Record, status: Status) -> None:
    with suppress(StoreError):
        record.status = status
        Store().save(record)
