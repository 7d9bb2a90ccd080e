"""Reader of the file `exit`, in which a sandbox's keeper records how it ended, once the log is complete."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sandbox.isolation import keeper, supervision
from sandbox.state import codec, files
from sandbox.state.record import Exit

_PATIENCE = 2.0
"""Seconds to wait for the keeper to write it after the end; it takes milliseconds."""
_LOOK = 0.002
_MAX_BYTES = 4096


def read(directory: Path) -> Exit | None:
    """Return how the sandbox with this directory ended; None if nothing is recorded."""
    with suppress(OSError, ValueError, RecursionError):
        found: Exit = codec.decode(Exit, codec.parse(files.read(directory / keeper.EXIT, _MAX_BYTES)), keeper.EXIT)
        return found
    return None


def noted(directory: Path, code: int | None) -> Exit:
    """Return the end to store in a sandbox's record: the one that its keeper recorded, else one at this moment.

    Args:
        directory: of the sandbox.
        code: the exit code if it is known; at some levels only the engine has it.
    """
    found = read(directory) or Exit(None, time.time())
    return found if found.code is not None else replace(found, code=code)


def wait(directory: Path) -> Exit | None:
    """Read the end of a sandbox that has ended; wait for a keeper that has yet to write it."""
    deadline = time.monotonic() + _PATIENCE
    while (found := read(directory)) is None and supervision.watching(directory) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found if found is not None else read(directory)
