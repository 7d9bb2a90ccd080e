"""`sandbox exec`: run a command inside a sandbox."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from sandbox.cli.completing import running


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-i", "--interactive", is_flag=True, help="Copy standard input to the command; by default its input is empty."
)
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal; for a shell, use -it.")
@click.option(
    "-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set an environment variable; may be repeated."
)
@click.option("-w", "--workdir", metavar="DIR", help="Working directory, absolute.  [default: the sandbox's]")
@click.option("--root", is_flag=True, help="Run as the sandbox's root user, who has no capabilities either.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Kill the command after so many seconds.")
@click.argument("sandbox", shell_complete=running)
@click.argument("argv", nargs=-1, required=True, metavar="COMMAND [ARG]...")
def command(
    interactive: bool,
    terminal: bool,
    env: tuple[str, ...],
    workdir: str | None,
    root: bool,
    timeout: float | None,
    sandbox: str,
    argv: tuple[str, ...],
) -> int:
    """Run COMMAND inside SANDBOX, under the same isolation and limits.

    It runs as the sandbox's unprivileged user, and its output is printed as it is written. Options must precede
    SANDBOX; arguments after it belong to the command. Ctrl-C kills the command; with -it, the key is sent to it.

    \b
    Examples:
      sandbox exec web ps aux
      sandbox exec -it web bash
      sandbox exec -e LANG=C -w /tmp web sh -c 'ls > list'
      tar c src | sandbox exec -i web tar x -C /tmp

    \b
    Exit codes: the command's own; 125 an error of sandbox, including a --timeout; 126 the command cannot
    be executed; 127 it does not exist; 130 Ctrl-C.
    """
    from sandbox.cli import terminal as lent
    from sandbox.errors import EngineError
    from sandbox.interrupts import deferred
    from sandbox.lifecycle.find import get
    from sandbox.request import parse

    variables = parse.env(env, os.environ)
    if workdir is not None:
        workdir = parse.inside_path(workdir, "-w")
    parse.command(argv, variables)
    if terminal:
        lent.require()
    found = get(sandbox).sandbox
    with ExitStack() as stack:
        if timeout is not None:
            stack.enter_context(_alarm(timeout))
        if terminal and interactive:
            stack.enter_context(lent.raw())
        try:
            # A signal or the timeout between the command's start and the next line would leave it running.
            with deferred(signal.SIGALRM):
                attached = found.attach(
                    argv,
                    stdin=sys.stdin.fileno() if interactive else None,
                    stdout=sys.stdout.fileno(),
                    stderr=sys.stderr.fileno(),
                    terminal=lent.size() if terminal else None,
                    root=root,
                    env=variables,
                    workdir=workdir,
                )
                stack.callback(attached.close)
            if terminal:
                stack.enter_context(lent.resizes(attached.resize))
            return attached.wait()
        except _OverError:
            raise EngineError(f"{argv[0]!r} took longer than {timeout:g} s", "a longer --timeout") from None


class _OverError(BaseException):
    """The timeout is over. Not an Exception, because code that polls would take a TimeoutError for its own."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _OverError in the block after so many seconds (setitimer(2))."""

    def expired(_number: int, _frame: object) -> None:
        raise _OverError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
