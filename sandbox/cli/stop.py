"""`sandbox stop`: end a workload, keep its log and record."""

from __future__ import annotations

import click


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@click.option(
    "-t", "--time", "grace", type=click.FloatRange(0, 3600), default=10.0, show_default=True, help="Seconds of grace."
)
def command(sandboxes: tuple[str, ...], grace: float) -> None:
    """End the workload of each SANDBOX: SIGTERM, then SIGKILL after the grace time."""
    from sandbox.cli.each import for_each
    from sandbox.manager import Manager

    manager = Manager()
    for_each(sandboxes, lambda reference: manager.stop(reference, grace))
