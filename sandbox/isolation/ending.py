"""How a sandbox ended, as its keeper wrote it down: once the log is complete, and before anything else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from sandbox.isolation import keeper, supervision

_PATIENCE = 2.0
"""Seconds that a keeper gets to write it after the end; it takes milliseconds."""
_LOOK = 0.002


class Ending(NamedTuple):
    """An end.

    Attributes:
        code: the exit code as a shell would say it; None where only an engine knows it.
        time: in seconds since the epoch.
        oom_killed: whether the kernel killed a process of it for want of memory; None where that cannot be seen.
        reason: "exited", "killed by a signal" or "out of memory".
    """

    code: int | None
    time: float
    oom_killed: bool | None
    reason: str


def read(directory: Path) -> Ending | None:
    """The end of the sandbox whose directory this is; None when nothing was written down."""
    try:
        raw = json.loads((directory / keeper.EXIT).read_text(encoding="ascii"))
        found = Ending(raw["code"], raw["time"], raw["oom_killed"], raw["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    code, when, oom, reason = map(type, found)
    sound = code in (int, type(None)) and when in (int, float) and oom in (bool, type(None)) and reason is str
    return found if sound and found.code in (None, *range(256)) else None


def wait(directory: Path) -> Ending | None:
    """As `read`, of a sandbox that has ended: a keeper that is just about to write is waited for."""
    deadline = time.monotonic() + _PATIENCE
    while (found := read(directory)) is None and supervision.watching(directory) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found if found is not None else read(directory)
