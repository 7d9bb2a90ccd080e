"""One act on several sandboxes: each is tried, each failure is told, the first decides the exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from sandbox.errors import SandboxError


def for_each(references: Iterable[str], act: Callable[[str], object]) -> None:
    """Act on each, print its reference when done.

    Raises:
        SandboxError: the last failure, where there was one; the ones before it have been printed.
    """
    failures: list[SandboxError] = []
    for reference in references:
        try:
            act(reference)
        except SandboxError as error:
            if failures:
                click.echo(f"sandbox: {failures[-1]}", err=True)
            failures.append(error)
        else:
            click.echo(reference)
    if failures:
        raise failures[-1]
