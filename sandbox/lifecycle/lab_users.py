"""The lab network's life beside its sandboxes: up before the first, down with the last, under one lock."""

from __future__ import annotations

from sandbox.failpoints import Failpoint, reached
from sandbox.isolation import LEVELS, driver
from sandbox.network import lab, publish
from sandbox.state.store import Store, named_lock

LOCK = "network"
"""Held by whoever changes the lab network, its addresses or its published ports."""


def withdraw(ident: str) -> None:
    """Let a sandbox's published ports lead nowhere any more; idempotent.

    Raises:
        EngineError
    """
    with named_lock(LOCK):
        publish.unpublish(ident)
    reached(Failpoint.UNPUBLISHED)


def release(store: Store) -> list[str]:
    """Take the lab network down when nobody uses it, and with it what levels keep for all their sandboxes.

    Returns:
        One line per thing removed.

    Raises:
        EngineError
    """
    removed: list[str] = []
    with named_lock(LOCK):
        if store.used_addresses():
            return removed
        for name in LEVELS:
            if store.was_used(name):
                removed += driver(name).release()
                store.unmark_used(name)
                reached(Failpoint.LEVEL_RELEASED)
        removed += publish.teardown()
        removed += lab.teardown()
        reached(Failpoint.LAB_RELEASED)
    return removed
