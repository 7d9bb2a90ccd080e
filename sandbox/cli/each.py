"""Apply an action to several sandboxes: try each, print each error, and exit with the code of the last error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from sandbox.cli.output import one_line
from sandbox.errors import SandboxError


def for_each(references: Iterable[str], act: Callable[[str], object], *, echo: bool = True) -> None:
    """Apply an action to each sandbox, and print its reference after success.

    Args:
        references: the arguments of the user.
        act: the action for one of them.
        echo: whether to print the reference; otherwise `act` prints the result.

    Raises:
        SandboxError: the last error, if there was one; the others have been printed.
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
