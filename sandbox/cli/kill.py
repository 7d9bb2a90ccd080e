"""`sandbox kill`: send a signal to a workload."""

from __future__ import annotations

import click

from sandbox.cli.completing import running, signal_name


@click.command()
@click.option(
    "-s",
    "--signal",
    "name",
    default="KILL",
    show_default=True,
    metavar="SIGNAL",
    shell_complete=signal_name,
    help="Signal name, with or without SIG, or number.",
)
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=running)
def command(name: str, sandboxes: tuple[str, ...]) -> None:
    """Send a signal to the workload of each SANDBOX.

    The signal is sent to the sandbox's init, which forwards it. KILL ends the whole sandbox at once, even a paused one.
    The signal is sent even while another command, such as a long `sandbox stop`, is working on the sandbox.

    \b
    Examples:
      sandbox kill web
      sandbox kill -s HUP web
      sandbox kill -s SIGUSR1 web-1 web-2
    """
    from sandbox.cli import signals
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.kill import kill

    number = signals.parse(name)
    for_each(sandboxes, lambda reference: kill(reference, number))
