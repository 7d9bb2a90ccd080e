"""One act on several sandboxes: each is tried, each failure is told, the last decides the exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sandbox.cli.output import one_line
from sandbox.errors import BusyError, SandboxError

if TYPE_CHECKING:
    from sandbox.lifecycle.manager import Manager, Running

PATIENCE = 10.0
"""Seconds to wait for another command that works on the same sandbox; `stop` may take as long."""
_PAUSE = 0.05


def for_each(references: Iterable[str], act: Callable[[str], object], *, echo: bool = True) -> None:
    """Act on each, print its reference when done.

    Args:
        references: what the user gave.
        act: on one of them.
        echo: whether to print the reference; else `act` prints what there is.

    Raises:
        SandboxError: the last failure, where there was one; the ones before it have been printed.
    """
    failures: list[SandboxError] = []
    for reference in references:
        try:
            act(reference)
        except SandboxError as error:
            if failures:
                click.echo(f"sandbox: {one_line(str(failures[-1]))}", err=True)
            failures.append(error)
        else:
            if echo:
                click.echo(reference)
    if failures:
        raise failures[-1]


@contextmanager
def held(manager: Manager, reference: str, patience: float = PATIENCE) -> Iterator[Running]:
    """A sandbox that no other command changes for the time of a block.

    Raises:
        NotFoundError: there is none.
        BusyError: another command works on it for longer than `patience` seconds.
    """
    record = manager.store.find(reference)
    deadline = time.monotonic() + patience
    while True:
        lock = manager.store.lock(record.id, wait=False)
        try:
            lock.__enter__()
        except BusyError:
            if time.monotonic() > deadline:
                raise BusyError(f"another command is working on {record.name}", "try again when it is done") from None
            time.sleep(_PAUSE)
            continue
        break
    try:
        yield manager.get(record.id)
    finally:
        lock.__exit__(None, None, None)
