"""The state of a sandbox for listings: from its record and /proc, and from its engine only if necessary."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from sandbox.errors import SandboxError
from sandbox.phases import Status
from sandbox.state.record import Record


@dataclass(frozen=True, slots=True)
class Shown:
    """The state of a sandbox, as a listing shows it.

    Attributes:
        running: whether it runs; None if that is unknown.
        paused: whether it is paused.
        exit_code: its exit code, if it has ended and the code is known.
        text: the state in a few words.
    """

    running: bool | None
    paused: bool
    exit_code: int | None
    text: str


def is_running(record: Record) -> bool | None:
    """Return whether its process is alive; None if that process is not on this host, or not known yet."""
    if record.status in (Status.EXITED, Status.REMOVING):
        return False
    return record.process.alive() if record.process is not None else None


def shown(record: Record) -> Shown:
    """Return its state for a listing. Its engine is asked only about a pause, or an exit code not yet recorded."""
    running = is_running(record)
    age = duration(time.time() - record.created)
    if record.status is Status.CREATING:
        text = "creating" if running is not False else "dead (creation did not finish)"
        return Shown(running, paused=False, exit_code=None, text=text)
    if running is None:
        return Shown(None, paused=False, exit_code=None, text=f"unknown, created {age} ago")
    if running:
        paused = record.paused and _ask(record)[0]
        return Shown(True, paused, None, f"up {age} (paused)" if paused else f"up {age}")
    code = record.exit_code
    if code is None:
        code = _ask(record)[1]
    return Shown(False, paused=False, exit_code=code, text="exited" if code is None else f"exited ({code})")


def _ask(record: Record) -> tuple[bool, int | None]:
    """Ask its engine whether it is paused, and for its exit code."""
    from sandbox.isolation import driver

    with suppress(SandboxError):  # if the engine does not answer, the listing continues without it
        state = driver(record.spec.isolation).adopt(record).state()
        return state.paused, state.exit_code
    return False, None


def duration(seconds: float) -> str:
    """Format a duration in its largest unit, such as "3 hours"."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(max(seconds, 0))} s"
