"""What commands print: tables and JSON on stdout, progress on stderr, plain where there is no terminal."""

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
    """The text without control characters: what a sandbox wrote must not steer the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def one_line(text: str) -> str:
    """The text on one line, without control characters: an engine's message may carry a sandbox's bytes."""
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
    """Whether the stream is a terminal that understands cursor movements."""
    return bool(stream.isatty()) and os.environ.get("TERM") not in (None, "", "dumb")


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, as docker prints them."""
    cells = [list(header), *[[plain(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell, as docker does."""
    for line in table_lines(header, rows):
        click.echo(line)


def as_json(document: Any) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(document, indent=2))


def binary_size(count: int | None) -> str:
    """Bytes in powers of 1024, as memory is sold: "12.5MiB"; "-" for what is not known."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def decimal_size(count: int | None) -> str:
    """Bytes in powers of 1000, as networks and disks count: "1.2MB"; "-" for what is not known."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(count: int | None, base: int, units: Sequence[str]) -> str:
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    return f"{value:.4g}{units[unit]}"


class Progress:
    """One live line on a terminal; nothing in a pipe."""

    def __init__(self) -> None:
        self._live = live(sys.stderr)
        self._width = 0

    def __call__(self, message: str) -> None:
        """Show one line in place of the last."""
        if not self._live:
            return
        columns = shutil.get_terminal_size().columns
        text = plain(message)[: max(columns - 1, 10)]
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Take the line away."""
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
