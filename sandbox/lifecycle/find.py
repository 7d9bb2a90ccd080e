"""Find sandboxes, and lock one so that no other command changes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from sandbox.errors import BusyError, NotFoundError, StoreError
from sandbox.isolation import driver
from sandbox.isolation.base import Sandbox
from sandbox.state.record import Record
from sandbox.state.store import Store


@dataclass(slots=True)
class Running:
    """A sandbox that was started.

    Attributes:
        sandbox: the driver's object for it.
    """

    sandbox: Sandbox

    @property
    def record(self) -> Record:
        """Its record."""
        return self.sandbox.record

    @property
    def url(self) -> str | None:
        """The URL at which the host and the load generator reach it; None without a known port."""
        return self.record.url


Reference = str | Running
"""A sandbox, given by its name, its id, the beginning of its id, or a `Running`."""


def get(reference: Reference) -> Running:
    """Return a sandbox, also one that another command started.

    Raises:
        NotFoundError, StoreError
    """
    return reference if isinstance(reference, Running) else adopt(Store().find(reference))


def adopt(record: Record) -> Running:
    """Return the sandbox of a record.

    Raises:
        NotFoundError: this version does not have its level.
        StoreError: its level cannot read the record.
    """
    return Running(driver(record.spec.isolation).adopt(record))


def everything() -> list[Running]:
    """Return all sandboxes, oldest first, except those with a broken record, which `prune` removes."""
    found = []
    for record in Store().records():
        with suppress(NotFoundError, StoreError):
            found.append(adopt(record))
    return found


@contextmanager
def held(reference: Reference, patience: float | None = None) -> Iterator[Running]:
    """Yield a sandbox as `get` returns it, with its lock held and its record read again.

    Args:
        reference: the sandbox.
        patience: seconds to wait for another command that holds the lock; None waits for ever.

    Raises:
        BusyError: another command holds the lock for longer.
        NotFoundError, StoreError
    """
    store = Store()
    ident = reference.record.id if isinstance(reference, Running) else store.resolve(reference)
    with ExitStack() as lock:
        try:
            lock.enter_context(store.lock(ident, patience=patience))
        except BusyError:
            name = reference.record.name if isinstance(reference, Running) else reference
            raise BusyError(f"another command is working on {name}", "try again when it is done") from None
        if isinstance(reference, Running):
            reference.sandbox.record = store.load(ident)
            yield reference
        else:
            yield get(ident)
