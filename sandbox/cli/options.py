"""Options that several commands share."""

from __future__ import annotations

import click

from sandbox.cli import completing

isolation_option = click.option(
    "--isolation",
    default="namespace",
    show_default=True,
    metavar="LEVEL",
    help="Isolation level: process, namespace, container, gvisor or vm.",
    shell_complete=completing.level,
)

format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)
