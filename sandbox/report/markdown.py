"""Render the report as Markdown with tables (GitHub Flavored Markdown 4.10)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sandbox.report import tables
from sandbox.report.figures import plain
from sandbox.report.tables import Table
from sandbox.results import Document

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")


def render(document: Document) -> str:
    """Render the report."""
    blocks = [f"# {escape(document.plan.workload)} at each isolation level", escape(tables.heading(document))]
    status = tables.status_line(document)
    if status:
        blocks.append(f"**{escape(status)}**")
    for table in tables.tables(document):
        blocks += [f"## {escape(table.title)}", _table(table)]
        blocks += [_list(table.notes)] if table.notes else []
    if document.warnings:
        blocks += ["## Warnings", _list([caveat.text for caveat in document.warnings])]
    blocks += ["## Method", _list(tables.method(document)), "## Host", _host(document)]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Escape a text for a paragraph or a cell of Markdown."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def _table(table: Table) -> str:
    lines = [_line(table.head), "|:--" + "|--:" * (len(table.head) - 1) + "|"]
    for row in table.rows:
        cells = row.cells or (row.remark, *[""] * (len(table.head) - 2))
        lines.append(_line((row.label, *cells)))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _host(document: Document) -> str:
    lines = ["| | |", "|:--|:--|", *(_line(pair) for pair in tables.host_lines(document))]
    return "\n".join(lines)
