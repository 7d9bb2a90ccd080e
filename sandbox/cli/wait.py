"""`sandbox wait`: wait for workloads to end, and print their exit codes."""

from __future__ import annotations

import click

from sandbox.cli.completing import existing


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=existing)
def command(sandboxes: tuple[str, ...]) -> None:
    """Wait until the workload of each SANDBOX has ended, and print its exit code on a line.

    An exit code of 128+n means that signal n ended it: 137 is SIGKILL, 143 SIGTERM.

    \b
    Examples:
      sandbox wait job
      test "$(sandbox wait job)" = 0 && sandbox cp job:/tmp/result .

    \b
    Exit codes: 0 all codes were printed; 125 a sandbox does not exist, or its exit code is unknown.
    """
    from sandbox.cli.each import for_each

    for_each(sandboxes, lambda reference: click.echo(_code(reference)), echo=False)


def _code(reference: str) -> int:
    """Wait for the end of a workload and return its exit code.

    Raises:
        NotFoundError: the sandbox does not exist.
        EngineError: its exit code is unknown.
    """
    from sandbox.errors import EngineError
    from sandbox.lifecycle.find import get
    from sandbox.lifecycle.wait import wait

    found = get(reference)
    code = wait(found)
    if code is None:
        raise EngineError(f"{found.record.name} has ended, but its exit code is unknown", "see `sandbox logs`")
    return code
