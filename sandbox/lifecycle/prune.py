"""Find what is not running or belongs to nobody, and remove it: records first, then what each engine has of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from sandbox import images
from sandbox.errors import BusyError, NewerRecordError, NotFoundError, SandboxError, StoreError
from sandbox.isolation import LEVELS, driver
from sandbox.isolation.base import Progress, Sandbox
from sandbox.lifecycle import lab_users
from sandbox.network import lab as network
from sandbox.network import publish as publishing
from sandbox.network import vagrant
from sandbox.phases import Status
from sandbox.state.record import Record
from sandbox.state.store import Store, named_lock


def prune(store: Store, *, dry_run: bool, note: Progress) -> list[str]:
    """Remove debris of killed commands, ended sandboxes, and orphans, of which no record tells any more.

    Sandboxes that another command is working on are left alone, and so are those that a newer version of sandbox made.

    Args:
        store: where the records are.
        dry_run: only say what would be removed.
        note: told of those of a newer version.

    Returns:
        One line per thing removed.

    Raises:
        SandboxError: the first thing that could not be removed; the rest was still tried.
    """
    store.ensure()
    removed: list[str] = []
    failures: list[SandboxError] = []
    for ident in store.ids():
        _collect(failures, removed, partial(_prune_one, store, ident, note, dry_run=dry_run))
    known = store.known()
    _collect(failures, removed, partial(store.sweep, dry_run=dry_run))
    for level in LEVELS:
        if _usable(level):
            _collect(failures, removed, partial(driver(level).sweep, known, dry_run=dry_run))
    _collect(failures, removed, partial(_sweep_published, known, dry_run=dry_run))
    _collect(failures, removed, partial(images.sweep, dry_run=dry_run))
    _collect(failures, removed, partial(vagrant.prune, dry_run=dry_run))
    if not dry_run:
        _collect(failures, removed, partial(lab_users.release, store))
    elif not store.used_addresses():
        removed += publishing.remains() + network.remains()
    if failures:
        raise failures[0]
    return removed


def _prune_one(store: Store, ident: str, note: Progress, *, dry_run: bool) -> list[str]:
    try:
        with store.lock(ident, wait=False):
            try:
                record = store.load(ident)
            except NewerRecordError as error:
                note(str(error))
                return []
            except (NotFoundError, StoreError):
                if not dry_run:
                    _remove_unknown(store, ident)
                return [f"broken record {ident}"]
            if record.spec.isolation not in LEVELS:
                note(f"sandbox {record.name} is of a level that this sandbox does not know")
                return []
            sandbox = driver(record.spec.isolation).adopt(record)
            if not _is_debris(record, sandbox):
                return []
            if not dry_run:
                if record.spec.publish:
                    lab_users.withdraw(ident)
                sandbox.destroy()
                store.forget(ident)
            return [f"sandbox {record.name} ({record.spec.isolation}, {ident})"]
    except (BusyError, NotFoundError):
        return []


def _remove_unknown(store: Store, ident: str) -> None:
    """Without a sound record its level is unknown: the sweeps find what it made, by its id."""
    for level in LEVELS:
        if _usable(level):
            driver(level).sweep(store.known(but=ident), dry_run=False)
    store.forget(ident)


def _sweep_published(known: Collection[str], *, dry_run: bool) -> list[str]:
    with named_lock(lab_users.LOCK):
        return publishing.sweep(known, dry_run=dry_run)


def _usable(level: str) -> bool:
    return not driver(level).missing()


def _is_debris(record: Record, sandbox: Sandbox) -> bool:
    if record.status is not Status.RUNNING:
        return True
    if record.owner is not None and not record.owner.alive():
        return True
    return not sandbox.state().running


def _collect(failures: list[SandboxError], removed: list[str], act: Callable[[], list[str]]) -> None:
    try:
        removed += act()
    except SandboxError as error:
        failures.append(error)
