"""Removing several sandboxes at once: what takes time for each is waited for by all together.

Ending one sandbox is mostly waiting: for its processes to die, for the kernel to take its groups and links apart. So
all of them are killed first, and only then cleared away one by one, when most of that waiting is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from sandbox.errors import BusyError, NotFoundError, SandboxError
from sandbox.interrupts import deferred
from sandbox.isolation import keeper
from sandbox.isolation.local.sandbox import LocalSandbox
from sandbox.lifecycle.manager import PATIENCE, Manager, Running


@dataclass(slots=True)
class Removal:
    """What became of one reference.

    Attributes:
        reference: as it was given.
        error: why the sandbox is still there; None when it is gone.
    """

    reference: str
    error: SandboxError | None = None


def remove_all(manager: Manager, references: Iterable[str], *, force: bool = False) -> list[Removal]:
    """Remove sandboxes, each under its lock; one that cannot be removed does not hinder the others.

    Args:
        manager: whose sandboxes.
        references: names, ids or beginnings of ids; one that is named twice is removed once.
        force: also running ones; then one that is gone already is no error.

    Returns:
        One entry per reference, in their order.
    """
    results = {reference: Removal(reference) for reference in references}
    doomed: dict[str, tuple[Running, list[Removal]]] = {}
    with ExitStack() as locks, deferred():
        for result in results.values():
            try:
                _take(manager, result, doomed, locks, force=force)
            except NotFoundError as error:
                result.error = None if force else error
            except SandboxError as error:
                result.error = error
        _kill_local(manager, [running for running, _ in doomed.values()])
        cleared = []
        for running, named in doomed.values():
            try:
                manager.clear(running)
            except SandboxError as error:
                for result in named:
                    result.error = error
            else:
                cleared.append(running.record.id)
        if cleared:
            _forget(manager, cleared, doomed)
    return list(results.values())


def _kill_local(manager: Manager, doomed: Iterable[Running]) -> None:
    """What `clear` would do for one after the other, for all at once; what cannot be done is told there."""
    local = [(running, running.sandbox) for running in doomed if isinstance(running.sandbox, LocalSandbox)]
    for running, sandbox in local:
        manager.doom(running)
        # Else it would load its libraries to write the end down, a hundred of them at once.
        keeper.hush(running.record.directory)
        with suppress(OSError, TimeoutError):
            sandbox.group.kill(timeout=0)
    for _, sandbox in local:
        with suppress(OSError, TimeoutError):
            sandbox.group.remove(timeout=0)


def _forget(manager: Manager, cleared: list[str], doomed: dict[str, tuple[Running, list[Removal]]]) -> None:
    """Forget all of them at once, and where that fails each by itself, to know of which it does."""
    try:
        manager.forget(cleared)
    except SandboxError:
        for ident in cleared:
            try:
                manager.forget([ident])
            except SandboxError as error:
                for result in doomed[ident][1]:
                    result.error = error


def _take(
    manager: Manager,
    result: Removal,
    doomed: dict[str, tuple[Running, list[Removal]]],
    locks: ExitStack,
    *,
    force: bool,
) -> None:
    """Lock the sandbox that a reference means, and put it with those to remove.

    Raises:
        NotFoundError, BusyError, StoreError
    """
    ident = manager.store.resolve(result.reference)
    if ident in doomed:
        doomed[ident][1].append(result)
        return
    with ExitStack() as lock:
        lock.enter_context(manager.store.lock(ident, patience=PATIENCE))
        running = manager.get(ident)
        if not force and running.sandbox.state().running:
            raise BusyError(f"{running.record.name} is running", f"sandbox stop {running.record.name}, or rm -f")
        locks.push(lock.pop_all())
    doomed[ident] = (running, [result])
