"""`sandbox stop`: stop a workload, and keep its log and record."""

from __future__ import annotations

import click

from sandbox.cli.completing import running
from sandbox.spec import GRACE


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=running)
@click.option(
    "-t",
    "--time",
    "--timeout",
    "grace",
    type=click.FloatRange(0, 3600),
    default=GRACE,
    show_default=True,
    metavar="SECONDS",
    help="Time between SIGTERM and SIGKILL.",
)
def command(sandboxes: tuple[str, ...], grace: float) -> None:
    """Stop the workload of each SANDBOX by SIGTERM, and by SIGKILL after the grace time.

    The log and the record are kept until `sandbox rm` or `sandbox prune`. Prints the name of each stopped sandbox.

    \b
    Examples:
      sandbox stop web
      sandbox stop -t 1 $(sandbox ps -q)
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.stop import stop

    for_each(sandboxes, lambda reference: stop(reference, grace))
