"""`sandbox report`: render the results of a comparison again."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sandbox.results import Document

FORMATS = ("table", "json", "markdown")
PIPE_WIDTH = 120
"""Width in columns if the output is not a terminal."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice((*FORMATS, "html")),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, not to standard output.",
)
def command(file: Path, form: str, output: Path | None) -> None:
    """Render FILE, a results.json that `sandbox compare` wrote (- for standard input).

    \b
    Examples:
      sandbox report results/results.json
      sandbox report results/results.json --format html -o report.html
    """
    from sandbox import results

    document = results.loads(sys.stdin.buffer.read(results.MAX_BYTES + 1)) if str(file) == "-" else results.load(file)
    if output is None:
        show(document, form)
    else:
        results.write_text(output, rendered(document, form, colour=False, width=PIPE_WIDTH))


def show(document: Document, form: str) -> None:
    """Print a document on standard output, with colours if it is a terminal and NO_COLOR is not set."""
    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal else PIPE_WIDTH
    click.echo(rendered(document, form, colour=colour, width=width), nl=False)


def rendered(document: Document, form: str, *, colour: bool, width: int) -> str:
    """Render a document in one of FORMATS or as html."""
    if form == "json":
        from sandbox.results import dumps

        return dumps(document)
    if form == "html":
        from sandbox.report import html

        return html.render(document)
    if form == "markdown":
        from sandbox.report import markdown

        return markdown.render(document)
    from sandbox.report import terminal

    return terminal.render(document, width=width, colour=colour)
