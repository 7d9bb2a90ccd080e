"""One act on several sandboxes: each is tried, each failure is told, the last decides the exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from sandbox.cli.output import one_line
from sandbox.errors import SandboxError


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
