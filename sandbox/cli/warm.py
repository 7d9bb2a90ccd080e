"""`sandbox warm`: prepare starts ahead."""

from __future__ import annotations

import click

from sandbox.cli.options import isolation_option
from sandbox.cli.output import Progress, table


@click.command()
@click.argument("workload", default="reactor")
@isolation_option
@click.option(
    "--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many, where each serves once."
)
@click.option("--cpus", metavar="N", help="As for `sandbox run`.")
@click.option("--memory", "-m", metavar="SIZE", help="As for `sandbox run`.")
@click.option("--pids-limit", type=int, metavar="N", help="As for `sandbox run`.")
@click.option("--disk", metavar="SIZE", help="As for `sandbox run`.")
@click.option("--cpuset-cpus", "cpuset", metavar="LIST", help="As for `sandbox run`.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="As for `sandbox run`.")
@click.option("--list", "listed", is_flag=True, help="List what is prepared.")
@click.option("--stop", is_flag=True, help="Remove what is prepared, at every level.")
def command(workload: str, isolation: str, count: int, listed: bool, stop: bool, **options: object) -> None:
    """Prepare starts of WORKLOAD, for `sandbox run --warm`.

    namespace: one interpreter of the root filesystem waits with the servers loaded, and forks into fresh namespaces as
    often as it is asked to. container, vm: a sandbox is started up to its first reply and paused; a warm start takes
    one that has the same workload, limits and environment, and takes it for good.

    What is shared between warm starts is said in docs/warm.md: at namespace, the layout of the address space and the
    seed of Python's hashes.

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
