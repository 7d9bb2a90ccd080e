"""The end of a sandbox, as its keeper wrote it down: once the log is complete, and before anything else."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sandbox.isolation import keeper, supervision
from sandbox.state import codec, files
from sandbox.state.record import Exit

_PATIENCE = 2.0
"""Seconds that a keeper gets to write it after the end; it takes milliseconds."""
_LOOK = 0.002
_MAX_BYTES = 4096


def read(directory: Path) -> Exit | None:
    """The end of the sandbox whose directory this is; None when nothing was written down."""
    with suppress(OSError, ValueError, RecursionError):
        found: Exit = codec.decode(Exit, codec.parse(files.read(directory / keeper.EXIT, _MAX_BYTES)), keeper.EXIT)
        return found
    return None


def noted(directory: Path, code: int | None) -> Exit:
    """The end for a sandbox's record: as its keeper wrote it down, else now.

    Args:
        directory: the sandbox's.
        code: the exit code as far as it is known; at some levels the engine alone knows it.
    """
    found = read(directory) or Exit(None, time.time())
    return found if found.code is not None else replace(found, code=code)


def wait(directory: Path) -> Exit | None:
    """As `read`, of a sandbox that has ended: a keeper that is just about to write is waited for."""
    deadline = time.monotonic() + _PATIENCE
    while (found := read(directory)) is None and supervision.watching(directory) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found if found is not None else read(directory)
