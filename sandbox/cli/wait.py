"""`sandbox wait`: a sandbox's end and its exit code."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from sandbox.cli.completing import existing

if TYPE_CHECKING:
    from sandbox.lifecycle.manager import Manager

_SETTLE = 2.0
"""Seconds within which whoever watches a sandbox has noted the exit code of one that has just ended."""
_PAUSE = 0.02


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=existing)
def command(sandboxes: tuple[str, ...]) -> None:
    """Wait until each SANDBOX's workload has ended, and print its exit code, one line each.

    One that has ended already is told at once. 128+n means that signal n ended it: 137 is SIGKILL, 143 SIGTERM.

    \b
    Examples:
      sandbox wait job
      test "$(sandbox wait job)" = 0 && sandbox cp job:/tmp/result .

    \b
    Exit codes: 0 all have ended and their codes are printed; 125 there is no such sandbox, or a code cannot be known.
    """
    from sandbox.cli.each import for_each
    from sandbox.lifecycle.manager import Manager

    manager = Manager()
    for_each(sandboxes, lambda reference: click.echo(_code(manager, reference)), echo=False)


def _code(manager: Manager, reference: str) -> int:
    """Wait for the end of one.

    Raises:
        NotFoundError: there is none.
        EngineError: its code cannot be known.
    """
    from sandbox.errors import EngineError, NotFoundError

    found = manager.get(reference)
    code = found.sandbox.wait()
    deadline = time.monotonic() + _SETTLE
    while code is None and time.monotonic() < deadline:
        with suppress(NotFoundError):  # removed meanwhile, by `run --rm` for one
            code = manager.store.load(found.record.id).exit_code
        if code is None:
            time.sleep(_PAUSE)
    if code is None:
        raise EngineError(f"{found.record.name} has ended, and nobody noted its exit code", "sandbox logs may tell why")
    return code
