"""`sandbox compare`: measure a workload at several isolation levels."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandbox.cli import completing
from sandbox.cli.report import FORMATS, show
from sandbox.cli.watch import Watch
from sandbox.errors import EngineError, SandboxError, UnavailableError

if TYPE_CHECKING:
    from sandbox.results import Document

RESULTS = "results.json"
REPORT = "report.html"
DEFAULT_DIR = "sandbox-results"


@click.command()
@click.argument("workload", shell_complete=completing.workload)
@click.option(
    "--isolation",
    "levels",
    metavar="LIST",
    shell_complete=completing.level,
    help="Levels to compare, such as process,container.  [default: all]",
)
@click.option(
    "--samples", type=click.IntRange(1, 500), default=10, show_default=True, help="Number of sandboxes per level."
)
@click.option(
    "--duration",
    type=click.IntRange(0, 600),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="Duration of the load on each sandbox; 0 for none.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of the order.  [default: a new one for each run]")
@click.option("--no-isolation-table", "probe", flag_value=False, default=True, type=bool, help="Leave isolation out.")
@click.option("--with-vagrant", is_flag=True, help="Measure `vagrant up` too, which takes about 25 s if emulated.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="Output format.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder for {RESULTS} and {REPORT}.  [default: {DEFAULT_DIR}/WORKLOAD-TIME]",
)
def command(
    workload: str,
    levels: str | None,
    samples: int,
    duration: int,
    seed: int | None,
    probe: bool,
    with_vagrant: bool,
    form: str,
    output: Path | None,
) -> None:
    """Compare WORKLOAD at each isolation level: startup, throughput, latency, isolation.

    Starts fresh sandboxes of every level in random order; measures the time to the first correct reply; sends load;
    and removes the sandbox. Prints a table, and writes a JSON file with every sample and an HTML report that opens
    offline. The JSON file is saved after each sample: Ctrl-C ends the run, removes the sandboxes and reports what was
    measured.

    \b
    Examples:
      sandbox compare reactor
      sandbox compare reactor --isolation process,namespace,container --samples 20 -o results
      sandbox compare --with-vagrant reactor
    """
    from sandbox.measure.compare import Comparison, Options, parse_levels

    options = Options(
        workload=workload,
        levels=parse_levels(levels),
        samples=samples,
        duration=duration,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        probe=probe,
        with_vagrant=with_vagrant,
    )
    watch = Watch()
    folder = output or Path(DEFAULT_DIR) / f"{Path(workload).name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    comparison = Comparison(options, folder / RESULTS, watch)
    comparison.check()
    _make_room(folder)
    try:
        document = comparison.run()
    finally:
        watch.clear()
    _write_report(document, folder)
    show(document, form)
    click.echo(f"report: {folder / REPORT}\ndata:   {folder / RESULTS}", err=True)
    if comparison.interrupt is not None:
        raise comparison.interrupt
    _judge(document)


def _make_room(folder: Path) -> None:
    """Create the folder, and rename results that are already in it after the time of their run.

    Raises:
        SandboxError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, REPORT):
            old = folder / name
            if old.exists():
                stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(old.stat().st_mtime))
                old.rename(folder / f"{old.stem}-{stamp}{old.suffix}")
    except OSError as error:
        raise SandboxError(f"{folder} cannot be written: {error.strerror}", "choose another folder with -o") from error


def _write_report(document: Document, folder: Path) -> None:
    from sandbox import results
    from sandbox.report import html

    results.write_text(folder / REPORT, html.render(document))


def _judge(document: Document) -> None:
    """Raise an error if an available level has no figures.

    Raises:
        UnavailableError: no level is available on this host.
        EngineError: all samples of an available level failed.
    """
    usable = [info for info in document.levels if info.available]
    if not usable:
        raise UnavailableError("none of these levels is available on this host", "sandbox doctor shows what is missing")
    for info in usable:
        summary = document.summary_of(info.name)
        if summary is None or summary.failed == summary.attempted:
            raise EngineError(f"{info.label}: no sample succeeded", "see the warnings in the report")
