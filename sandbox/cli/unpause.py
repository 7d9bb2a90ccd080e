"""`sandbox unpause`: resume a paused sandbox."""

from __future__ import annotations

import click

from sandbox.cli.completing import running


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=running)
def command(sandboxes: tuple[str, ...]) -> None:
    """Resume each paused SANDBOX. Does nothing to one that is not paused.

    \b
    Example:
      sandbox unpause web
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.pause import unpause

    for_each(sandboxes, unpause)
