"""`sandbox exec`: a command inside."""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds; without it, wait for ever.")
@click.option("--root", is_flag=True, help="As the sandbox's root user, which has no capability either.")
@click.argument("sandbox")
@click.argument("argv", nargs=-1, required=True, metavar="COMMAND [ARG]...")
def command(sandbox: str, argv: tuple[str, ...], timeout: float | None, root: bool) -> int:
    """Run COMMAND inside SANDBOX, behind the same walls and limits. Exits with the command's own code."""
    from sandbox.errors import EngineError
    from sandbox.manager import Manager

    try:
        result = Manager().get(sandbox).sandbox.exec(argv, timeout=timeout, root=root)
    except TimeoutError as error:
        raise EngineError(str(error), "a longer --timeout") from None
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    return result.exit_code
