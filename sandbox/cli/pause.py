"""`sandbox pause`: pause a sandbox."""

from __future__ import annotations

import click

from sandbox.cli.completing import running


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=running)
def command(sandboxes: tuple[str, ...]) -> None:
    """Pause all processes of each SANDBOX until `sandbox unpause`.

    A paused sandbox keeps its memory and its address, but does not answer. `stop`, `kill` and `rm -f` work on it.
    Pausing it again does nothing.

    \b
    Examples:
      sandbox pause web
      sandbox unpause web
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.pause import pause

    for_each(sandboxes, pause)
