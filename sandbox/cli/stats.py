"""`sandbox stats`: show the resource usage of sandboxes."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.completing import running
from sandbox.cli.output import as_json, binary_size, decimal_size, live, table_lines
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.isolation.base import Stats
    from sandbox.lifecycle.find import Running

INTERVAL = 1.0
"""Seconds between two lines of a sandbox, as in docker-stats(1)."""
SINGLE = 0.5
"""Seconds over which CPU time is measured if statistics are printed once."""
HEADER = ("ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS")
_HOME_AND_CLEAR = "\x1b[H\x1b[2J"
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement of a sandbox.

    Attributes:
        running: the sandbox.
        at: the value of time.monotonic().
        stats: None if it has ended, or its engine does not answer.
    """

    running: Running
    at: float
    stats: Stats | None


@click.command()
@click.option("--no-stream", is_flag=True, help="Print the statistics once.")
@click.option("--stream", is_flag=True, help="Keep printing even if standard output is not a terminal.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)
@click.argument("sandboxes", nargs=-1, metavar="[SANDBOX]...", shell_complete=running)
def command(no_stream: bool, stream: bool, form: str, sandboxes: tuple[str, ...]) -> int:
    """Show the resource usage of each SANDBOX; by default of all that run.

    On a terminal the table is updated every second until Ctrl-C, which exits with code 0. Otherwise it is printed once,
    as with --no-stream, unless --stream is given. `-` stands for a value that the sandbox's level cannot observe.

    CPU % is the share of one CPU over the last second: two busy CPUs are 200 %. MEM USAGE is the memory that counts
    towards the limit. NET I/O is received / sent by the sandbox, BLOCK I/O read / written. For a VM, CPU and memory are
    those of QEMU on the host.

    JSON has plain numbers, sizes in bytes: one list, or with --stream one line per sandbox and second.

    \b
    Examples:
      sandbox stats
      sandbox stats --no-stream web
      sandbox stats --stream --format json web | tee usage
    """
    from sandbox.errors import SpecError

    if stream and no_stream:
        raise SpecError("--stream and --no-stream exclude each other", "omit one of them")
    if no_stream or not (stream or sys.stdout.isatty()):
        before = look(sandboxes)
        time.sleep(SINGLE if before else 0)
        rows = [figures(one, _before(before, one)) for one in look(sandboxes, before)]
        if form == "json":
            as_json(rows)
        else:
            click.echo("\n".join(table_lines(HEADER, map(_row, rows))))
        return 0
    try:
        _follow(sandboxes, form)
    except KeyboardInterrupt as error:
        if type(error) is not KeyboardInterrupt:
            raise  # SIGTERM and SIGHUP keep their own codes
        if form == "table":
            click.echo()
    return 0


def _follow(sandboxes: tuple[str, ...], form: str) -> None:
    before: list[Sample] = []
    painted = live(sys.stdout) and form == "table"
    if painted:
        click.echo(_HOME_AND_CLEAR, nl=False, color=True)
    while True:
        began = time.monotonic()
        now = look(sandboxes, before)
        rows = [figures(one, _before(before, one)) for one in now]
        if form == "json":
            for row in rows:
                click.echo(json.dumps(row))
        else:
            lines = table_lines(HEADER, map(_row, rows))
            if painted:
                lines = [line + _CLEAR_LINE for line in lines]
                click.echo("\x1b[H" + "\n".join(lines) + "\n" + _CLEAR_BELOW, nl=False, color=True)
            else:
                click.echo("\n".join(lines))
        sys.stdout.flush()
        before = now
        time.sleep(max(began + INTERVAL - time.monotonic(), 0.0))


def look(sandboxes: tuple[str, ...], before: list[Sample] | None = None) -> list[Sample]:
    """Return one sample of each sandbox; of all that run if none is named.

    Raises:
        NotFoundError: a named sandbox does not exist; if it was in `before`, it is shown as ended instead.
    """
    from sandbox.cli.state import is_running
    from sandbox.errors import NotFoundError
    from sandbox.lifecycle.find import everything, get

    if not sandboxes:
        return [_sample(one) for one in everything() if is_running(one.record)]
    found = []
    for reference in sandboxes:
        try:
            found.append(_sample(get(reference)))
        except NotFoundError:
            gone = [one for one in before or () if reference in (one.running.record.name, one.running.record.id)]
            if not gone:
                raise
            found.append(Sample(gone[0].running, time.monotonic(), None))
    return found


def _sample(one: Running) -> Sample:
    from sandbox.cli.state import is_running

    stats = None
    if is_running(one.record) is not False:
        try:
            stats = one.sandbox.stats()
        except SandboxError:
            stats = None  # it has just ended, or its engine does not answer
    return Sample(one, time.monotonic(), stats)


def _before(samples: list[Sample], one: Sample) -> Sample | None:
    return next((found for found in samples if found.running.record.id == one.running.record.id), None)


def figures(now: Sample, before: Sample | None) -> dict[str, Any]:
    """Return a sample in numbers (bytes, percent); None for a value that cannot be observed."""
    from sandbox.isolation import driver

    record = now.running.record
    stats = now.stats
    memory = stats.memory if stats is not None else None
    machine = driver(record.spec.isolation).features.machine
    return {
        "id": record.id,
        "name": record.name,
        "isolation": record.spec.isolation,
        "cpu_percent": _cpu(now, before),
        "cpu_seconds": stats.cpu_seconds if stats is not None else None,
        "memory": memory,
        "memory_limit": record.spec.memory,
        # A VM's memory on the host includes QEMU's own, but the limit applies to the guest's only.
        "memory_percent": None if memory is None or machine else 100 * memory / record.spec.memory,
        "pids": stats.pids if stats is not None else None,
        "pids_limit": record.spec.pids_limit,
        "net_received": stats.received if stats is not None else None,
        "net_sent": stats.sent if stats is not None else None,
        "block_read": stats.read if stats is not None else None,
        "block_written": stats.written if stats is not None else None,
    }


def _cpu(now: Sample, before: Sample | None) -> float | None:
    if now.stats is None or before is None or before.stats is None:
        return None
    used, had, elapsed = now.stats.cpu_seconds, before.stats.cpu_seconds, now.at - before.at
    if used is None or had is None or elapsed <= 0:
        return None
    return max(100 * (used - had) / elapsed, 0.0)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        row["name"],
        _percent(row["cpu_percent"]),
        f"{binary_size(row['memory'])} / {binary_size(row['memory_limit'])}",
        _percent(row["memory_percent"]),
        f"{decimal_size(row['net_received'])} / {decimal_size(row['net_sent'])}",
        f"{decimal_size(row['block_read'])} / {decimal_size(row['block_written'])}",
        "-" if row["pids"] is None else str(row["pids"]),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"
