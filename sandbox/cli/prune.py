"""`sandbox prune`: remove ended sandboxes and orphaned resources."""

from __future__ import annotations

import click


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def command(dry_run: bool) -> None:
    """Remove ended sandboxes and orphaned resources.

    These are: sandboxes that have ended, remains of commands that were killed, resources that carry an id of ours but
    have no record, half-built images, and the networks of the lab and of Vagrant machines if they are unused. Running
    sandboxes, images and the machines of `vagrant up` are kept.
    """
    from sandbox.lifecycle.prune import prune

    removed = prune(dry_run=dry_run, note=lambda line: click.echo(f"kept: {line}", err=True))
    for line in removed:
        click.echo(f"would remove {line}" if dry_run else f"removed {line}")
    if not removed:
        click.echo("nothing to remove", err=True)
