"""`sandbox doctor`: check which levels this host supports, and install what is missing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from sandbox.cli.options import format_option

if TYPE_CHECKING:
    from sandbox.host.report import Report

EXIT_INCOMPLETE = 1
"""At least one isolation level is not available."""


@click.command()
@click.option("--fix", "install", is_flag=True, help="Install and start what is missing (Debian and Ubuntu, as root).")
@click.option("--stop", is_flag=True, help="Stop the daemons that --fix has started.")
@click.option("-v", "--verbose", is_flag=True, help="List every check.")
@format_option
def command(*, install: bool, stop: bool, verbose: bool, form: str) -> None:
    """Check which isolation levels this host supports; for a missing one, say why and how to provide it.

    The exit code is 0 if every level is available, and 1 if one is not. Vagrant has a row of its own; as it
    is not a level, it does not change the exit code.
    """
    from sandbox import isolation
    from sandbox.host import fix, report

    if install and stop:
        raise click.UsageError("--fix and --stop cannot be used together")
    if stop:
        if not fix.stop(_progress):
            _progress("nothing to stop")
        return
    if install:
        outcome = fix.fix(isolation.requirements(), _progress)
        if not (outcome.done or outcome.advice or outcome.failed):
            _progress("nothing to do")
        for line in outcome.failed:
            _progress(f"failed: {line}")
        for line in outcome.advice:
            _progress(f"please do: {line}")
    found = report.look(isolation.requirements())
    click.echo(json.dumps(found.to_json(), indent=2) if form == "json" else table(found, verbose=verbose))
    sys.exit(0 if found.complete else EXIT_INCOMPLETE)


def _progress(line: str) -> None:
    click.echo(line, err=True)


def table(report: Report, *, verbose: bool = False) -> str:
    """Format the report as a table: a row for each level and each extra, and one for each further reason."""
    rows: list[tuple[str, ...]] = [("LEVEL", "AVAILABLE", "WHY NOT", "REMEDY")]
    for levels, no in ((report.levels, "no"), (report.extras, "no (optional)")):
        for level in levels:
            if level.available:
                rows.append((level.name, "yes", "", ""))
            for number, missing in enumerate(level.missing):
                head = ("", "") if number else (level.name, no)
                rows.append((*head, missing.detail, missing.remedy))
    lines = _columns(rows)
    host = report.host
    lines += [
        "",
        f"{host.distribution}, Linux {host.kernel}, {host.machine}, cgroups {host.cgroups}, init {host.init}",
    ]
    for note in report.notes:
        lines.append(f"note: {note.finding.name}: {note.finding.detail}; without it {note.without}")
        lines.append(f"      remedy: {note.finding.remedy}")
    if verbose:
        lines += ["", *_columns([("CHECK", "OK", "DETAIL"), *_check_rows(report)])]
    return "\n".join(lines)


def _check_rows(report: Report) -> list[tuple[str, ...]]:
    return [(finding.name, "yes" if finding.ok else "no", finding.detail) for finding in report.findings]


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
