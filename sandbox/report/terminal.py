"""Render the report as plain text for a terminal of 80 columns or more."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from sandbox.report import tables
from sandbox.report.figures import plain
from sandbox.report.tables import Row, Table
from sandbox.results import Document, Verdict

MIN_WIDTH = 60
GAP = "  "

_COLOURS: dict[str, str] = {
    Verdict.ISOLATED: "32",
    Verdict.HELD: "32",
    Verdict.PARTIAL: "33",
    Verdict.SHARED: "31",
    Verdict.NOT_HELD: "31",
    Verdict.UNKNOWN: "2",
}
"""SGR parameters (ECMA-48 8.3.117)."""
_BOLD, _YELLOW = "1", "33"


def render(document: Document, *, width: int = 100, colour: bool = False) -> str:
    """Render the report.

    Args:
        document: the document.
        width: maximum number of columns, if the labels allow it.
        colour: whether to use escape sequences.
    """
    width = max(width, MIN_WIDTH)
    blocks = [_paint(plain(tables.heading(document)), _BOLD, colour)]
    status = tables.status_line(document)
    if status:
        blocks[0] += "\n" + _paint(status, _YELLOW, colour)
    for table in tables.tables(document):
        blocks += [_table(part, width, colour) for part in _fitted(table, width)]
    if document.warnings:
        lines = ["Warnings", *(_wrapped(f"- {caveat.text}", width, "  ") for caveat in document.warnings)]
        blocks.append(_paint(lines[0], _YELLOW, colour) + "\n" + "\n".join(lines[1:]))
    blocks.append("\n".join(_wrapped(line, width, "") for line in tables.method(document)))
    return "\n\n".join(blocks) + "\n"


def _fitted(table: Table, width: int) -> list[Table]:
    """Return the table, split into two if it is too wide."""
    if not table.split or sum(_widths(table)) + len(GAP) * (len(table.head) - 1) <= width:
        return [table]
    cut = table.split
    first = Table(
        table.title,
        table.head[:cut],
        tuple(Row(row.label, row.cells[: cut - 1], row.remark) for row in table.rows),
    )
    rest = Table(
        "",
        (table.head[0], *table.head[cut:]),
        tuple(Row(row.label, row.cells[cut - 1 :]) for row in table.rows if row.cells),
        notes=table.notes,
    )
    return [first, rest] if rest.rows else [first]


def _table(table: Table, width: int, colour: bool) -> str:
    widths = _widths(table)
    heads = [_head_lines(name) for name in table.head]
    depth = max(len(lines) for lines in heads)
    lines = [_paint(plain(table.title), _BOLD, colour)] if table.title else []
    for level in range(depth):
        # Heads of one line are on the last line, directly above their column.
        cells = [part[level - depth + len(part)] if level - depth + len(part) >= 0 else "" for part in heads]
        lines.append(_line(cells, widths, ()))
    for row in table.rows:
        if row.cells:
            paints = [_COLOURS.get(cell, "") if colour else "" for cell in ("", *row.cells)]
            lines.append(_line([row.label, *row.cells], widths, paints))
        else:
            indent = " " * (widths[0] + len(GAP))
            text = _wrapped(row.remark, width - len(indent), "")
            lines.append(_pad(plain(row.label), widths[0]) + GAP + text.replace("\n", "\n" + indent))
    lines += [_wrapped(f"({note})", width, " ") for note in table.notes]
    return "\n".join(lines)


def _widths(table: Table) -> list[int]:
    columns = [[*_head_lines(name)] for name in table.head]
    for row in table.rows:
        columns[0].append(plain(row.label))
        for column, cell in zip(columns[1:], row.cells, strict=False):
            column.append(plain(cell))
    return [max(_cells(text) for text in column) for column in columns]


def _head_lines(name: str) -> list[str]:
    """Split a head such as "vm (TCG, emulated)" into two lines for a narrow column."""
    before, comma, after = plain(name).partition(", ")
    return [before + ",", after] if comma else [before]


def _line(cells: Sequence[str], widths: Sequence[int], paints: Sequence[str]) -> str:
    """Lay out a line with labels left-aligned and figures right-aligned."""
    parts = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = plain(cell)
        padded = _pad(text, width) if index == 0 else " " * (width - _cells(text)) + text
        parts.append(_paint(padded, paints[index], True) if paints and paints[index] else padded)
    return GAP.join(parts).rstrip()


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _cells(text: str) -> int:
    """Return the number of columns that a text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(bool(unicodedata.combining(char)) for char in text)


def _wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        plain(text), max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _paint(text: str, parameters: str, colour: bool) -> str:
    return f"\x1b[{parameters}m{text}\x1b[0m" if colour else text
