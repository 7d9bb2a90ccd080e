"""`sandbox pause`: hold a sandbox still."""

from __future__ import annotations

import click

from sandbox.cli.completing import running


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=running)
def command(sandboxes: tuple[str, ...]) -> None:
    """Hold every process of each SANDBOX still, until `sandbox unpause`.

    It keeps its memory and its address, and answers nobody. `stop`, `kill` and `rm -f` work on a paused one. Pausing
    a paused one does nothing.

    \b
    Examples:
      sandbox pause web
      sandbox unpause web
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.pause import pause

    for_each(sandboxes, pause)
