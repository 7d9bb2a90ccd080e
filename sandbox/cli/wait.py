"""`sandbox wait`: a sandbox's end and its exit code."""

from __future__ import annotations

import click

from sandbox.cli.completing import existing


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

    for_each(sandboxes, lambda reference: click.echo(_code(reference)), echo=False)


def _code(reference: str) -> int:
    """Wait for the end of one.

    Raises:
        NotFoundError: there is none.
        EngineError: its code cannot be known.
    """
    from sandbox.errors import EngineError
    from sandbox.lifecycle.find import get
    from sandbox.lifecycle.wait import wait

    found = get(reference)
    code = wait(found)
    if code is None:
        raise EngineError(f"{found.record.name} has ended, and nobody noted its exit code", "sandbox logs may tell why")
    return code
