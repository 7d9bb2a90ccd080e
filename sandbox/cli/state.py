"""What a sandbox is doing, for listings: from its record and /proc, from its engine where nothing else knows."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from sandbox.errors import SandboxError
from sandbox.phases import Status
from sandbox.state.record import Record


@dataclass(frozen=True, slots=True)
class Shown:
    """What a listing says of a sandbox.

    Attributes:
        running: None where it cannot be told from here.
        paused: whether it is held still.
        exit_code: of one that has ended, where it is known.
        text: all of it in a few words.
    """

    running: bool | None
    paused: bool
    exit_code: int | None
    text: str


def is_running(record: Record) -> bool | None:
    """Whether its process lives; None where that process is not on this host, or not yet known."""
    if record.status in (Status.EXITED, Status.REMOVING):
        return False
    return record.process.alive() if record.process is not None else None


def shown(record: Record) -> Shown:
    """What a listing says of it. Engines are asked about one that was paused, and for an exit code not yet noted."""
    running = is_running(record)
    age = duration(time.time() - record.created)
    if record.status is Status.CREATING:
        text = "creating" if running is not False else "dead (creation did not finish)"
        return Shown(running, paused=False, exit_code=None, text=text)
    if running is None:
        return Shown(None, paused=False, exit_code=None, text=f"unknown, made {age} ago")
    if running:
        paused = record.paused and _ask(record)[0]
        return Shown(True, paused, None, f"up {age} (paused)" if paused else f"up {age}")
    code = record.exit_code
    if code is None:
        code = _ask(record)[1]
    return Shown(False, paused=False, exit_code=code, text="exited" if code is None else f"exited ({code})")


def _ask(record: Record) -> tuple[bool, int | None]:
    """Whether it is paused, and its exit code, as its engine says."""
    from sandbox.isolation import driver

    with suppress(SandboxError):  # an engine that does not answer leaves it open; a listing goes on
        state = driver(record.spec.isolation).adopt(record).state()
        return state.paused, state.exit_code
    return False, None


def duration(seconds: float) -> str:
    """A duration as people say it, in its largest unit: "3 hours"."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(max(seconds, 0))} s"
