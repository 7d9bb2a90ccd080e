"""`sandbox ps`: what there is. Imports no engine: liveness comes from /proc."""

from __future__ import annotations

import time

import click

from sandbox.cli.options import format_option
from sandbox.cli.output import as_json, table
from sandbox.phases import Status
from sandbox.record import Record
from sandbox.spec import MIB
from sandbox.store import Store


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@format_option
def command(everything: bool, quiet: bool, form: str) -> None:
    """List sandboxes."""
    records = [record for record in Store().records() if everything or is_running(record) is not False]
    if quiet:
        for record in records:
            click.echo(record.id)
    elif form == "json":
        as_json([_document(record) for record in records])
    else:
        table(
            ("ID", "NAME", "WORKLOAD", "ISOLATION", "STATUS", "ADDRESS", "CPUS", "MEMORY", "PIDS"), map(_row, records)
        )


def is_running(record: Record) -> bool | None:
    """Whether its process lives; None where that process is not on this host, or not yet known."""
    if record.status in (Status.EXITED, Status.REMOVING):
        return False
    return record.process.alive() if record.process is not None else None


def _status(record: Record) -> str:
    running = is_running(record)
    age = _age(time.time() - record.created)
    if record.status is Status.CREATING:
        return "creating" if running is not False else "dead (creation did not finish)"
    if running is None:
        return f"unknown, made {age} ago"
    if running:
        return f"up {age}"
    code = record.data.get("exit_code")
    return f"exited ({code})" if code is not None else "exited"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(max(seconds, 0))} s"


def _row(record: Record) -> tuple[str, ...]:
    spec = record.spec
    level = spec.isolation
    if record.data.get("accelerator") == "tcg":
        level += " (TCG)"
    return (
        record.id,
        record.name,
        spec.workload,
        level,
        _status(record),
        f"{record.address}:{spec.port}",
        f"{spec.cpus:g}",
        f"{spec.memory // MIB}m",
        str(spec.pids_limit),
    )


def _document(record: Record) -> dict[str, object]:
    spec = record.spec
    return {
        "id": record.id,
        "name": record.name,
        "workload": spec.workload,
        "isolation": spec.isolation,
        "accelerator": record.data.get("accelerator"),
        "running": is_running(record),
        "status": _status(record),
        "address": record.address,
        "port": spec.port,
        "url": f"http://{record.address}:{spec.port}/",
        "cpus": spec.cpus,
        "memory": spec.memory,
        "pids_limit": spec.pids_limit,
        "created": record.created,
        "pid": record.process.pid if record.process is not None else None,
        "startup": record.timeline.durations(),
    }
