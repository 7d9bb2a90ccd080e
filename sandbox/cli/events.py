"""`sandbox events`: print what happens to sandboxes, by polling the state directory."""

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
"""Seconds between two polls. A record is a small file, so polling 100 sandboxes takes a few ms."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One sandbox, as a poll of the state directory found it.

    Attributes:
        record: its record at that time.
        stage: its last event: "create", "start", "die" or "remove".
    """

    record: Record
    stage: str


@click.command()
@format_option
def command(form: str) -> None:
    """Print the events of sandboxes as they happen, until Ctrl-C.

    \b
    Events:
      create  its name and address are claimed, and it is being created
      start   it serves, or runs if it has no known port
      die     its workload has ended; with the exit code if it is known
      remove  it has been removed completely

    Each event is one line with time, event, id, name, workload and level, or one JSON document. The state directory is
    polled every 0.25 s: times are as accurate as that, and some or all events of a sandbox that existed for a shorter
    time are missing. Earlier events are not printed.

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
    """Poll the state directory; return all sandboxes by id."""
    return {record.id: Seen(record, _stage(record)) for record in store.records()}


def _stage(record: Record) -> str:
    if is_running(record) is False:
        return "die"
    return "create" if record.status is Status.CREATING else "start"


_STAGES = ("create", "start", "die")


def changes(before: dict[str, Seen], now: dict[str, Seen]) -> list[tuple[str, Record]]:
    """Return the events between two polls, in the order in which they must have happened for each sandbox."""
    found: list[tuple[str, Record]] = []
    for ident, seen in now.items():
        past = before.get(ident)
        begin = _STAGES.index(past.stage) + 1 if past is not None else 0
        for stage in _STAGES[begin : _STAGES.index(seen.stage) + 1]:
            # If the creation failed, there was no start.
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
