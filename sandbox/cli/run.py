"""`sandbox run`: a workload, a command or an application behind a wall."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli import completing
from sandbox.cli.dockerflags import refuse_docker_flags
from sandbox.cli.options import isolation_option
from sandbox.cli.output import Progress, print_pieces, tell_dropped
from sandbox.errors import EXIT_ERROR, SandboxError
from sandbox.spec import GRACE

if TYPE_CHECKING:
    from sandbox.lifecycle.find import Running
    from sandbox.request.resolve import Target

_COMMAND = "sandbox.run.command"


class RunCommand(click.Command):
    """Takes what stands behind `--` for itself: click would mix it with the arguments before."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split at the first `--`."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The line behind "Usage: sandbox run"."""
        return ["[OPTIONS]", "WORKLOAD | ./DIRECTORY | -- COMMAND [ARG]..."]


@click.command(cls=RunCommand)
@click.argument("workload", required=False, shell_complete=completing.workload)
@isolation_option
@click.option("-d", "--detach", is_flag=True, help="Return once it serves; print its id.")
@click.option("--rm", "remove", is_flag=True, help="Remove the sandbox when the workload ends by itself.")
@click.option("--warm", is_flag=True, help="Start from what `sandbox warm` has prepared.")
@click.option("--name", help="Name of the sandbox; made up where none is given.")
@click.option("--cpus", metavar="N", help="CPU time per second, such as 0.5.  [default: 1]")
@click.option("--memory", "-m", metavar="SIZE", help="Memory, swap included, such as 256m.  [default: 256m]")
@click.option("--pids-limit", type=int, metavar="N", help="Processes and threads together.  [default: 128]")
@click.option("--cpuset-cpus", "cpuset", metavar="LIST", help="CPUs that it may use, such as 0 or 0-1.")
@click.option(
    "--disk",
    metavar="SIZE",
    help="What it may write below /tmp, kept in memory.  [default: 64m, half of --memory at most]",
)
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Environment entry; repeat for more.")
@click.option("--env-file", multiple=True, metavar="FILE", help="File of NAME=VALUE lines; repeat for more.")
@click.option("-w", "--workdir", metavar="DIR", help="Directory inside that the command starts in.")
@click.option("--port", type=int, metavar="N", help="Port that a command listens on; without it no reply is awaited.")
@click.option("--ready-path", metavar="PATH", help="HTTP path that answers 200 once it serves.")
@click.option(
    "-p", "--publish", multiple=True, metavar="HOST:CTR", help="Let a port of 127.0.0.1 lead inside; repeat for more."
)
@click.option(
    "-v",
    "--volume",
    "volumes",
    multiple=True,
    metavar="HOST:CTR[:ro]",
    help="Show a directory or file of the host inside.",
)
@refuse_docker_flags
def command(workload: str | None, isolation: str, detach: bool, remove: bool, warm: bool, **options: Any) -> int:
    """Run a workload, a directory with a sandbox.toml, or a command behind a wall.

    Prints the address once a correct reply was served, then what the workload writes: its standard output and error to
    ours, as it comes and byte for byte. A command without --port serves nothing that is known of, and has no address.
    Ctrl-C stops and removes the sandbox.

    \b
    A WORKLOAD is one of `sandbox workloads`. A DIRECTORY is told from it by a slash, or is ".";
    its sandbox.toml says what to run, and flags stand above what it says. A COMMAND is one of the
    root filesystem; @listen@ among its arguments stands for the address to listen on.

    \b
    Examples:
      sandbox run reactor
      sandbox run reactor --isolation container -d --name web --memory 128m
      sandbox run reactor --isolation vm --cpus 2 -e DEBUG=1 -p 8000:8080
      sandbox run ./my-app --isolation namespace
      sandbox run --rm -v ./data:/data:ro -- sh -c 'wc -l /data/*'
      sandbox run --port 8000 -- python3 -m http.server --bind @listen@ 8000
    """
    from sandbox.lifecycle import run
    from sandbox.request import resolve

    wanted = resolve.make(_target(click.get_current_context(), workload), isolation, resolve.Options(**options))

    made: list[Running] = []
    try:
        with Progress() as progress:
            running = run.run(
                wanted.spec,
                application=wanted.application,
                progress=progress,
                warm=warm,
                owner=not detach,
                follow=not detach,
                remove=remove,
                then=made.append,
            )
        if not detach:
            return _follow(running, remove=remove)
    except BaseException:
        # Ctrl-C, SIGTERM or a reader that went away: all mean that nobody wants it any more. A second Ctrl-C kills
        # at once, by way of `remove`.
        if made:
            _end(made[0])
        raise
    if remove and running.sandbox.keeper is None:
        _remove_when_over(running)
    click.echo(running.record.id)
    click.echo(f"{running.record.name} {_where(running)}", err=True)
    return 0


def _target(ctx: click.Context, workload: str | None) -> Target:
    command: tuple[str, ...] | None = ctx.meta.get(_COMMAND)
    if command is not None and workload is not None:
        raise click.UsageError(f"both {workload!r} and a command behind -- are given; one of them is to run", ctx)
    if command is not None:
        return command
    if workload is None:
        raise click.UsageError("nothing to run: a WORKLOAD, a ./DIRECTORY, or -- COMMAND", ctx)
    return workload


def _where(running: Running) -> str:
    """How it can be reached, for people."""
    said = "runs" if running.url is None else f"serves at {running.url}"
    for port in running.record.spec.publish:
        said += f", 127.0.0.1:{port.host} leads to its port {port.inside}"
    return said


def _follow(running: Running, *, remove: bool) -> int:
    from sandbox.lifecycle import remove as removing
    from sandbox.lifecycle.stop import note_end

    _announce(running)
    print_pieces(running.sandbox.output(tell_dropped))
    code = running.sandbox.wait()
    if remove:
        removing.remove(running, force=True)
    else:
        note_end(running.record.id, code)
        if running.sandbox.keeper is not None:
            running.sandbox.keeper.leave()
        click.echo(f"{running.record.name} ended; sandbox logs {running.record.name}, sandbox prune", err=True)
    if code is None:
        click.echo(f"sandbox: how {running.record.name} ended is not known: it, or its keeper, was removed", err=True)
        return EXIT_ERROR
    return code


def _announce(running: Running) -> None:
    """Say where it serves."""
    if running.url is not None:
        click.echo(running.url)
        spec = running.record.spec
        click.echo(f"{spec.name} ({spec.isolation}) {_where(running)}. Ctrl-C stops it.", err=True)


def _end(running: Running) -> None:
    from sandbox.cli import arm
    from sandbox.lifecycle.remove import remove

    arm()  # a second Ctrl-C cuts the time of grace short
    if running.sandbox.keeper is not None:
        running.sandbox.keeper.stop_following()  # it may have much to say at its end, and nobody reads that here
    try:
        running.sandbox.stop(GRACE)
    finally:
        remove(running, force=True)


def _remove_when_over(running: Running) -> None:
    """Leave a process behind that waits for the end and removes the sandbox: there is no daemon that would."""
    from sandbox.lifecycle.remove import remove

    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    code = 1
    try:
        with suppress(SandboxError, OSError):  # nobody listens here; somebody removed it before us, or `prune` will
            running.sandbox.wait()
            remove(running.record.id, force=True)
            code = 0
    finally:
        os._exit(code)
