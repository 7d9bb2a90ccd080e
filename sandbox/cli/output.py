"""Print tables and JSON on standard output, and progress on standard error if it is a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sandbox.isolation.log import Piece


def plain(text: str) -> str:
    """Replace control characters: text from a sandbox must not control the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(text: str) -> str:
    """Join a text to one line without control characters: a message of an engine may contain text from a sandbox."""
    return plain(" ".join(text.split()))


def print_pieces(pieces: Iterable[Piece]) -> None:
    """Write what a workload wrote to its standard output and error to ours, as it comes and byte for byte."""
    from sandbox.isolation.keeper import STDERR
    from sandbox.isolation.relay import to_descriptor

    sys.stdout.flush()
    sys.stderr.flush()
    writes = [to_descriptor(stream.fileno()) for stream in (sys.stdout, sys.stderr)]
    for piece in pieces:
        writes[piece.stream == STDERR](piece.data)


def tell_dropped(count: int) -> None:
    """Say that some of a workload's output is missing at this place."""
    click.echo(f"sandbox: {count} bytes are missing here: the log had no room for them", err=True)


def live(stream: Any) -> bool:
    """Return whether a stream is a terminal that supports cursor movement."""
    return bool(stream.isatty()) and os.environ.get("TERM") not in (None, "", "dumb")


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table with columns as wide as their widest cell, like docker's."""
    cells = [list(header), *[[plain(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with columns as wide as their widest cell, like docker's."""
    for line in table_lines(header, rows):
        click.echo(line)


def as_json(document: Any) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(document, indent=2))


def binary_size(count: int | None) -> str:
    """Format bytes in powers of 1024, as used for memory: "12.5MiB"; "-" if unknown."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def decimal_size(count: int | None) -> str:
    """Format bytes in powers of 1000, as used for networks and disks: "1.2MB"; "-" if unknown."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(count: int | None, base: int, units: Sequence[str]) -> str:
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:.4g}{units[unit]}"


class Progress:
    """One live line on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._live = live(sys.stderr)
        self._width = 0

    def __call__(self, message: str) -> None:
        """Replace the line."""
        if not self._live:
            return
        columns = shutil.get_terminal_size().columns
        text = plain(message)[: max(columns - 1, 10)]
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Clear the line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
