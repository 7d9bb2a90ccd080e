"""Keeps the lab network up while a series of sandboxes comes and goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox import network
from sandbox.manager import NETWORK_LOCK, Manager
from sandbox.store import named_lock


@contextmanager
def kept_up(manager: Manager) -> Iterator[None]:
    """Hold an address of the lab, so that no sandbox is the first to need it or the last to leave it.

    The lock on our id keeps `prune` away for as long as we live; after a kill it finds the address and the id.

    Raises:
        StoreError, EngineError
    """
    manager.store.ensure()
    ident, lock = manager.store.claim_id()
    try:
        with named_lock(NETWORK_LOCK):
            network.ensure()
            network.allocate(manager.store, ident, own_stack=False)
        yield
    finally:
        try:
            manager.store.forget(ident)
        finally:
            os.close(lock)
        manager.release_lab()
