"""`sandbox rm`: remove sandboxes."""

from __future__ import annotations

import click


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@click.option("-f", "--force", is_flag=True, help="Also running ones; no error for one that is gone.")
def command(sandboxes: tuple[str, ...], force: bool) -> None:
    """Remove each SANDBOX and everything it has."""
    from sandbox.cli.each import for_each
    from sandbox.errors import NotFoundError
    from sandbox.manager import Manager

    manager = Manager()

    def remove(reference: str) -> None:
        try:
            manager.remove(reference, force=force)
        except NotFoundError:
            if not force:
                raise

    for_each(sandboxes, remove)
