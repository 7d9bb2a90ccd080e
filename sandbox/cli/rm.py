"""`sandbox rm`: remove sandboxes."""

from __future__ import annotations

import click

from sandbox.cli.completing import existing


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=existing)
@click.option("-f", "--force", is_flag=True, help="Remove running sandboxes too; ignore those that do not exist.")
def command(sandboxes: tuple[str, ...], force: bool) -> None:
    """Remove each SANDBOX with its log, its files and its address.

    A running sandbox is removed only with -f, which ends it by SIGKILL. A sandbox that another command is working on is
    not removed.

    \b
    Examples:
      sandbox rm web
      sandbox rm -f $(sandbox ps -aq)
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.remove import remove_all

    errors = dict(zip(sandboxes, remove_all(sandboxes, force=force), strict=True))

    def tell(reference: str) -> None:
        if (error := errors[reference]) is not None:
            raise error

    for_each(sandboxes, tell)
