"""Remove ended sandboxes and orphaned resources: first by the records, then by searching each engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from sandbox import images
from sandbox.errors import BusyError, NewerRecordError, NotFoundError, SandboxError, StoreError
from sandbox.isolation import LEVELS, driver
from sandbox.isolation.base import Progress
from sandbox.lifecycle import lab
from sandbox.lifecycle.find import Running, adopt
from sandbox.lifecycle.remove import remove_held
from sandbox.lifecycle.start import silent
from sandbox.network import lab as network
from sandbox.network import publish, vagrant
from sandbox.phases import Status
from sandbox.state.store import Store, named_lock


def prune(*, dry_run: bool = False, note: Progress = silent) -> list[str]:
    """Remove the remains of killed commands, ended sandboxes, and resources without a record.

    Sandboxes whose lock another command holds, and those that a newer version of sandbox created, are left alone.

    Args:
        dry_run: only report what would be removed.
        note: called with a line for each sandbox of a newer version.

    Returns:
        One line per item removed.

    Raises:
        SandboxError: the first removal that failed; the others were still tried.
    """
    store = Store()
    store.ensure()
    removed: list[str] = []
    failures: list[SandboxError] = []
    for ident in store.ids():
        _collect(failures, removed, partial(_prune_one, store, ident, note, dry_run=dry_run))
    known = store.known()
    _collect(failures, removed, partial(store.prune, dry_run=dry_run))
    for level in _usable():
        _collect(failures, removed, partial(driver(level).prune, known, dry_run=dry_run))
    _collect(failures, removed, partial(_prune_published, known, dry_run=dry_run))
    _collect(failures, removed, partial(images.prune, dry_run=dry_run))
    _collect(failures, removed, partial(vagrant.prune, dry_run=dry_run))
    if not dry_run:
        _collect(failures, removed, lab.remove_unused)
    elif not store.used_addresses():
        removed += publish.remains() + network.remains()
    if failures:
        raise failures[0]
    return removed


def _prune_one(store: Store, ident: str, note: Progress, *, dry_run: bool) -> list[str]:
    try:
        with store.lock(ident, wait=False):
            try:
                record = store.load(ident)
                if record.spec.isolation not in LEVELS:
                    note(f"sandbox {record.name} has a level that this version of sandbox does not have")
                    return []
                running = adopt(record)
            except NewerRecordError as error:
                note(str(error))
                return []
            except (NotFoundError, StoreError):
                if not dry_run:
                    _remove_unknown(store, ident)
                return [f"broken record {ident}"]
            if not _is_debris(running):
                return []
            if not dry_run:
                _check(remove_held([running]))
            return [f"sandbox {record.name} ({record.spec.isolation}, {ident})"]
    except (BusyError, NotFoundError):
        return []


def _remove_unknown(store: Store, ident: str) -> None:
    """Remove a sandbox whose record is broken, and its level thus unknown: every level looks for its id."""
    for level in _usable():
        driver(level).prune(store.known(but=ident), dry_run=False)
    _check(store.remove([ident]))


def _check(failed: Mapping[str, SandboxError]) -> None:
    for error in failed.values():
        raise error


def _prune_published(known: Collection[str], *, dry_run: bool) -> list[str]:
    with named_lock(lab.LOCK):
        return publish.prune(known, dry_run=dry_run)


def _usable() -> list[str]:
    return [level for level in LEVELS if not driver(level).missing()]


def _is_debris(running: Running) -> bool:
    record = running.record
    if record.status is not Status.RUNNING:
        return True
    if record.owner is not None and not record.owner.alive():
        return True
    return not running.sandbox.state().running


def _collect(failures: list[SandboxError], removed: list[str], act: Callable[[], list[str]]) -> None:
    try:
        removed += act()
    except SandboxError as error:
        failures.append(error)
