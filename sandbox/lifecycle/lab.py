"""The lab network's life beside its sandboxes: up before the first, down with the last, under one lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sandbox.errors import UnavailableError
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import deferred
from sandbox.isolation import LEVELS, driver
from sandbox.network import lab, publish
from sandbox.state.store import Store, named_lock

LOCK = "network"
"""Held by whoever changes the lab network, its addresses or its published ports."""


def need_root() -> None:
    """Refuse another user.

    Raises:
        UnavailableError
    """
    if os.geteuid() != 0:
        raise UnavailableError("sandboxes need root: namespaces, cgroups and the lab network", "run it with sudo")


@contextmanager
def use() -> Iterator[None]:
    """Be a user of the lab network for the time of a block, so that it stays up between sandboxes.

    Raises:
        EngineError, StoreError
    """
    need_root()
    store = Store()
    store.ensure()
    with ExitStack() as undo:
        with deferred():
            ident, lock = store.claim_id()
            undo.callback(os.close, lock)
            undo.callback(remove_intent, ident)
        with named_lock(LOCK):
            store.claim_address(f"lab-{ident}", ident)
            lab.ensure()
        yield


def unpublish(ident: str) -> None:
    """Let a sandbox's published ports lead nowhere any more; idempotent.

    Raises:
        EngineError
    """
    with named_lock(LOCK):
        publish.unpublish(ident)
    reached(Failpoint.UNPUBLISHED)


def remove_intent(ident: str) -> None:
    """Remove what was written down of a sandbox of which nothing else is left, and the network with the last.

    Raises:
        StoreError, EngineError
    """
    failed = Store().remove([ident])
    if failed:
        raise failed[ident]
    remove_unused()


def remove_unused() -> list[str]:
    """Take the lab network down when nobody uses it, and with it what levels keep for all their sandboxes.

    Returns:
        One line per thing removed.

    Raises:
        EngineError
    """
    store = Store()
    removed: list[str] = []
    with named_lock(LOCK):
        if store.used_addresses():
            return removed
        for name in LEVELS:
            if store.was_used(name):
                removed += driver(name).remove_shared()
                store.unmark_used(name)
                reached(Failpoint.SHARED_REMOVED)
        removed += publish.teardown()
        removed += lab.teardown()
        reached(Failpoint.LAB_REMOVED)
    return removed
