"""`sandbox warm`: prepare starts ahead of time."""

from __future__ import annotations

import click

from sandbox.cli.options import isolation_option
from sandbox.cli.output import Progress, table


@click.command()
@click.argument("workload", default="reactor")
@isolation_option
@click.option(
    "--count",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Number of starts to prepare, at levels where each is used once.",
)
@click.option("--cpus", metavar="N", help="As for `sandbox run`.")
@click.option("--memory", "-m", metavar="SIZE", help="As for `sandbox run`.")
@click.option("--pids-limit", type=int, metavar="N", help="As for `sandbox run`.")
@click.option("--disk", metavar="SIZE", help="As for `sandbox run`.")
@click.option("--cpuset-cpus", "cpuset", metavar="LIST", help="As for `sandbox run`.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="As for `sandbox run`.")
@click.option("--list", "listed", is_flag=True, help="List the prepared starts.")
@click.option("--stop", is_flag=True, help="Remove the prepared starts of all levels.")
def command(workload: str, isolation: str, count: int, listed: bool, stop: bool, **options: object) -> None:
    """Prepare starts of WORKLOAD for `sandbox run --warm`.

    At the level namespace, one process with the servers loaded (a zygote) waits, and forks into new namespaces for each
    warm start. At container and vm, a sandbox is started up to its first reply and paused; a warm start uses one with
    the same workload, limits and environment, and each is used once.

    At namespace, warm starts share the layout of the address space and the seed of Python's hashes, see docs/warm.md.

    \b
    Examples:
      sandbox warm
      sandbox run --warm reactor
      sandbox warm reactor --isolation vm --count 2 --memory 128m
      sandbox run --warm reactor --isolation vm --memory 128m
      sandbox warm --list
      sandbox warm --stop
    """
    from sandbox.lifecycle import warm
    from sandbox.request import resolve

    if stop:
        for line in warm.stop():
            click.echo(line)
        return
    if listed:
        rows = [(level, "every server", f"zygote, process {pid}") for level, _, pid in warm.zygotes()]
        rows += [(one.spec.isolation, one.spec.workload, one.name) for one in warm.waiting()]
        table(("ISOLATION", "WORKLOAD", "WHAT"), rows)
        return
    spec = resolve.make(workload, isolation, resolve.Options(**options)).spec  # type: ignore[arg-type]
    with Progress() as progress:
        lines = warm.fill(spec, count, progress)
    for line in lines:
        click.echo(line)
