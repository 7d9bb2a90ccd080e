"""`sandbox compare`: a workload at several levels, measured."""

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
    help="Levels, such as process,container.  [default: all]",
)
@click.option(
    "--samples", type=click.IntRange(1, 500), default=10, show_default=True, help="Fresh sandboxes per level."
)
@click.option(
    "--duration",
    type=click.IntRange(0, 600),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="Load on each sandbox; 0 for none.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the random order.  [default: a new one each run]")
@click.option("--no-isolation-table", "probe", flag_value=False, default=True, type=bool, help="Leave out the probes.")
@click.option("--with-vagrant", is_flag=True, help="Measure machines of `vagrant up` too: some 25 s each, emulated.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print.")
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

    Starts fresh sandboxes of every level in random order, times each to its first correct reply, loads it, removes it.
    Prints a table and writes a JSON file with every sample and an HTML report that opens offline. The JSON is complete
    after each sample: Ctrl-C ends the run, removes the sandboxes and reports what was measured.

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
    """Make the folder; results that are in it already get the time of their run into their names.

    Raises:
        SandboxError: it cannot be written.
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
    """A level without a figure is no success.

    Raises:
        UnavailableError: this host can do none of the levels.
        EngineError: a level that it can do gave no figure.
    """
    usable = [info for info in document.levels if info.available]
    if not usable:
        raise UnavailableError("this host can do none of these levels", "sandbox doctor says what is missing")
    for info in usable:
        summary = document.summary_of(info.name)
        if summary is None or summary.failed == summary.attempted:
            raise EngineError(f"{info.label}: no sample succeeded", "the report's warnings say why")
