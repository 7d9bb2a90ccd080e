"""`sandbox logs`: what a workload wrote."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("sandbox")
@click.option("-f", "--follow", is_flag=True, help="Go on until the workload ends.")
def command(sandbox: str, follow: bool) -> None:
    """Print what SANDBOX's workload wrote to its standard output and error."""
    from sandbox.manager import Manager

    for chunk in Manager().get(sandbox).sandbox.logs(follow=follow):
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
