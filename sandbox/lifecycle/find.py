"""Find sandboxes, and hold one so that no other command changes it."""

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
    """A sandbox that was started, with its driver's handle.

    Attributes:
        sandbox: the driver's handle.
    """

    sandbox: Sandbox

    @property
    def record(self) -> Record:
        """What is known of it."""
        return self.sandbox.record

    @property
    def url(self) -> str | None:
        """Where it serves, for the host and the generator; None where nothing is known of a port."""
        return self.record.url


Reference = str | Running
"""A sandbox by its name, its id or the beginning of its id; or by a handle, which knows what is a child of ours."""


def get(reference: Reference) -> Running:
    """A sandbox, whoever started it.

    Raises:
        NotFoundError, StoreError
    """
    return reference if isinstance(reference, Running) else adopt(Store().find(reference))


def adopt(record: Record) -> Running:
    """The sandbox of a record.

    Raises:
        NotFoundError: it is of a level that this version does not know.
        StoreError: its level cannot read the record.
    """
    return Running(driver(record.spec.isolation).adopt(record))


def everything() -> list[Running]:
    """All sandboxes, oldest first; those whose record is broken are left to `prune`."""
    found = []
    for record in Store().records():
        with suppress(NotFoundError, StoreError):
            found.append(adopt(record))
    return found


@contextmanager
def held(reference: Reference, patience: float | None = None) -> Iterator[Running]:
    """A sandbox as of `get`, with its lock for the time of a block, and its record as it is on disk now.

    Args:
        reference: which.
        patience: seconds to wait for another command that works on it; None waits for as long as it takes.

    Raises:
        BusyError: another command works on it for longer than that.
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
