"""`sandbox events`: what happens to sandboxes, told by looking at the state directory again and again."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from sandbox.cli.options import format_option
from sandbox.cli.state import is_running
from sandbox.phases import Status
from sandbox.state.record import Record
from sandbox.state.store import Store

PERIOD = 0.25
"""Seconds between two looks. A record is a small file, so that a look at 100 sandboxes costs a few ms."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look saw of one sandbox.

    Attributes:
        record: as it was.
        stage: "create", "start", "die" or "remove": the last event that it has gone through.
    """

    record: Record
    stage: str


@click.command()
@format_option
def command(form: str) -> None:
    """Print what happens to sandboxes, as it happens, until Ctrl-C.

    \b
    Events:
      create  its name and address are claimed, and it is being made
      start   it serves, or runs where no port is known
      die     its workload has ended; with the exit code, once that is known
      remove  nothing is left of it

    One line each: time, event, id, and what it is; or one JSON document on a line. Every 0.25 s the state directory is
    looked at: of a sandbox that lived shorter than that, some events or all are missing, and times are as exact as
    that. What had happened before is not told.

    \b
    Example:
      sandbox events --format json | jq -r 'select(.event == "die") | .name'
    """
    store = Store()
    before = look(store)
    while True:
        time.sleep(PERIOD)
        now = look(store)
        for event, record in changes(before, now):
            _print(event, record, form)
        before = now


def look(store: Store) -> dict[str, Seen]:
    """What there is, by id."""
    return {record.id: Seen(record, _stage(record)) for record in store.records()}


def _stage(record: Record) -> str:
    if is_running(record) is False:
        return "die"
    return "create" if record.status is Status.CREATING else "start"


_STAGES = ("create", "start", "die")


def changes(before: dict[str, Seen], now: dict[str, Seen]) -> list[tuple[str, Record]]:
    """The events between two looks, in the order in which they must have come for each sandbox."""
    found: list[tuple[str, Record]] = []
    for ident, seen in now.items():
        past = before.get(ident)
        begin = _STAGES.index(past.stage) + 1 if past is not None else 0
        for stage in _STAGES[begin : _STAGES.index(seen.stage) + 1]:
            # A creation that failed died without having served.
            if stage != "start" or seen.record.status is not Status.CREATING:
                found.append((stage, seen.record))
    for ident, past in before.items():
        if ident not in now:
            if past.stage != "die":
                found.append(("die", past.record))
            found.append(("remove", past.record))
    return found


def _print(event: str, record: Record, form: str) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    code = record.exit_code if event == "die" else None
    what = {"name": record.name, "workload": record.spec.workload, "isolation": record.spec.isolation}
    if form == "json":
        click.echo(json.dumps({"time": at, "event": event, "id": record.id, **what, "exit_code": code}))
    else:
        shown = ", ".join(f"{key}={value}" for key, value in what.items())
        click.echo(f"{at} {event} {record.id} ({shown}{'' if code is None else f', exit_code={code}'})")
    sys.stdout.flush()
