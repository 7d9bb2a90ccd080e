"""`sandbox run`: a workload behind a wall."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from sandbox.cli.options import isolation_option
from sandbox.cli.output import Progress
from sandbox.errors import SandboxError

if TYPE_CHECKING:
    from sandbox.manager import Manager, Running

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL, docker-stop(1)'s default."""


@click.command()
@click.argument("workload")
@isolation_option
@click.option("-d", "--detach", is_flag=True, help="Return once it serves; print its id.")
@click.option("--name", help="Name of the sandbox; made up where none is given.")
@click.option("--cpus", metavar="N", help="CPU time per second, such as 0.5.  [default: 1]")
@click.option("--memory", "-m", metavar="SIZE", help="Memory, swap included, such as 256m.  [default: 256m]")
@click.option("--pids-limit", type=int, metavar="N", help="Processes and threads together.  [default: 128]")
@click.option("--cpuset-cpus", metavar="LIST", help="CPUs that it may use, such as 0 or 0-1.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Environment entry; repeat for more.")
@click.option("--rm", "remove", is_flag=True, help="Remove the sandbox when the workload ends by itself.")
def command(
    workload: str,
    isolation: str,
    detach: bool,
    name: str | None,
    cpus: str | None,
    memory: str | None,
    pids_limit: int | None,
    cpuset_cpus: str | None,
    env: tuple[str, ...],
    remove: bool,
) -> int:
    """Run WORKLOAD behind a wall.

    Prints the address once a correct reply was served, then follows the log. Ctrl-C stops and removes the sandbox.

    \b
    Examples:
      sandbox run reactor
      sandbox run reactor --isolation container -d --name web --memory 128m
      sandbox run reactor --isolation vm --cpus 2 -e DEBUG=1
    """
    from sandbox.manager import Manager

    manager = Manager()
    spec = manager.make_spec(
        workload,
        isolation,
        name=name,
        cpus=cpus,
        memory=memory,
        pids_limit=pids_limit,
        env=env,
        cpuset=cpuset_cpus,
    )
    with Progress() as progress:
        running = manager.run(spec, progress=progress, owner=not detach)
    if detach:
        if remove:
            _remove_when_over(manager, running)
        click.echo(running.record.id)
        click.echo(f"{running.record.name} serves at {running.url}", err=True)
        return 0
    return _follow(manager, running, remove=remove)


def _follow(manager: Manager, running: Running, *, remove: bool) -> int:
    try:
        click.echo(running.url)
        sys.stdout.flush()
        click.echo(f"{running.record.name} ({running.record.spec.isolation}) is ready. Ctrl-C stops it.", err=True)
        for chunk in running.sandbox.logs(follow=True):
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
        code = running.sandbox.wait()
    except BaseException:
        # Ctrl-C, SIGTERM or a reader that went away: all mean that nobody wants it any more. A second Ctrl-C kills
        # at once, by way of `destroy`.
        _end(manager, running)
        raise
    if remove:
        manager.destroy(running)
    else:
        click.echo(f"{running.record.name} ended; sandbox logs {running.record.name}, sandbox prune", err=True)
    return code if code is not None else 0


def _end(manager: Manager, running: Running) -> None:
    try:
        running.sandbox.stop(GRACE)
    finally:
        manager.destroy(running)


def _remove_when_over(manager: Manager, running: Running) -> None:
    """Leave a process behind that waits for the end and removes the sandbox: there is no daemon that would."""
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
            manager.remove(running.record.id, force=True)
            code = 0
    finally:
        os._exit(code)
