"""Options that several commands share."""

from __future__ import annotations

import click

from sandbox.cli import completing
from sandbox.isolation import DEFAULT, LEVELS

isolation_option = click.option(
    "--isolation",
    default=DEFAULT,
    show_default=True,
    metavar="LEVEL",
    help=f"Isolation level: {', '.join(LEVELS)}.",
    shell_complete=completing.level,
)

format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)
