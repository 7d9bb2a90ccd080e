"""`sandbox prune`: nothing left behind."""

from __future__ import annotations

import click


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def command(dry_run: bool) -> None:
    """Remove what is not running and what belongs to nobody.

    That is: sandboxes that have ended, debris of commands that were killed, resources that carry one of our ids
    although no record knows them, half-built images, and the networks of the lab and of Vagrant machines when nobody
    uses them. Running sandboxes, images and the machines of `vagrant up` are kept.
    """
    from sandbox.lifecycle.prune import prune

    removed = prune(dry_run=dry_run, note=lambda line: click.echo(f"kept: {line}", err=True))
    for line in removed:
        click.echo(f"would remove {line}" if dry_run else f"removed {line}")
    if not removed:
        click.echo("nothing to remove", err=True)
