"""`sandbox ps`: list sandboxes. No engine is imported if /proc shows whether a sandbox runs."""

from __future__ import annotations

import sys

import click

from sandbox.cli.options import format_option
from sandbox.cli.output import as_json, table
from sandbox.cli.state import Shown, is_running, shown
from sandbox.spec import MIB
from sandbox.state.record import Record
from sandbox.state.store import Store

HEADER = ("ID", "NAME", "WORKLOAD", "ISOLATION", "STATUS", "ADDRESS", "PORTS", "CPUS", "MEMORY", "PIDS")


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Include sandboxes that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@format_option
def command(everything: bool, quiet: bool, form: str) -> None:
    """List running sandboxes, or all with -a.

    STATUS is the time since the sandbox was created, or its exit code if it has ended. ADDRESS is its address on the
    lab network, PORTS are the ports published on 127.0.0.1.

    \b
    Examples:
      sandbox ps
      sandbox ps -a --format json
      sandbox rm $(sandbox ps -aq)
    """
    records = [record for record in Store().records() if everything or is_running(record) is not False]
    if quiet and form == "json":
        as_json([record.id for record in records])
    elif quiet:
        for record in records:
            click.echo(record.id)
    elif form == "json":
        as_json([_document(record, shown(record)) for record in records])
    else:
        table(HEADER, (_row(record, shown(record)) for record in records))
        if not records and sys.stdout.isatty():
            more = "sandbox run reactor starts one" if everything else "sandbox ps -a lists those that have ended"
            click.echo(f"nothing is running; {more}", err=True)


def address(record: Record) -> str:
    """Return the address with the port, or alone if the port is not known."""
    return record.address if record.spec.port is None else f"{record.address}:{record.spec.port}"


def ports(record: Record) -> str:
    """Format the published ports as docker-ps(1) does."""
    return ", ".join(f"127.0.0.1:{port.host}->{port.inside}" for port in record.spec.publish) or "-"


def _row(record: Record, now: Shown) -> tuple[str, ...]:
    spec = record.spec
    level = spec.isolation
    if record.accelerator == "tcg":
        level += " (TCG)"
    return (
        record.id,
        record.name,
        spec.workload,
        level,
        now.text,
        address(record),
        ports(record),
        f"{spec.cpus:g}",
        f"{spec.memory // MIB}m",
        str(spec.pids_limit),
    )


def _document(record: Record, now: Shown) -> dict[str, object]:
    spec = record.spec
    return {
        "id": record.id,
        "name": record.name,
        "workload": spec.workload,
        "isolation": spec.isolation,
        "accelerator": record.accelerator,
        "running": now.running,
        "paused": now.paused,
        "exit_code": now.exit_code,
        "status": now.text,
        "address": record.address,
        "port": spec.port,
        "url": record.url,
        "published": [{"host": port.host, "inside": port.inside} for port in spec.publish],
        "cpus": spec.cpus,
        "memory": spec.memory,
        "pids_limit": spec.pids_limit,
        "created": record.created,
        "pid": record.process.pid if record.process is not None else None,
        "startup": record.timeline.durations(),
    }
