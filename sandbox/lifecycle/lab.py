"""Set up the lab network before the first sandbox, and remove it after the last, under one lock."""

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
"""The lock for changes to the lab network, its addresses and its published ports."""


def need_root() -> None:
    """Refuse to run as a user other than root.

    Raises:
        UnavailableError
    """
    if os.geteuid() != 0:
        raise UnavailableError("sandboxes need root: namespaces, cgroups and the lab network", "run it with sudo")


@contextmanager
def use() -> Iterator[None]:
    """Keep the lab network up within the block, even while there is no sandbox.

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
    """Withdraw a sandbox's published ports. Idempotent.

    Raises:
        EngineError
    """
    with named_lock(LOCK):
        publish.unpublish(ident)
    reached(Failpoint.UNPUBLISHED)


def remove_intent(ident: str) -> None:
    """Remove the record and claims of a sandbox without resources, and the network after the last sandbox.

    Raises:
        StoreError, EngineError
    """
    failed = Store().remove([ident])
    if failed:
        raise failed[ident]
    remove_unused()


def remove_unused() -> list[str]:
    """Remove the lab network if it is unused, and with it the resources that sandboxes of a level share.

    Returns:
        One line per resource removed.

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
