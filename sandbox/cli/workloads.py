"""`sandbox workloads`: list and show the workloads."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from sandbox.cli import completing
from sandbox.cli.options import format_option


@click.group(name="workloads")
def command() -> None:
    """List and explain the workloads: servers of different concurrency models."""


@command.command(name="ls")
@format_option
def list_workloads(form: str) -> None:
    """List the workloads with their summaries.

    SECTION is the section of the study notes that describes the model.
    """
    from sandbox import workloads as catalogue

    workloads = [catalogue.describe(name) for name in catalogue.names()]
    if form == "json":
        click.echo(json.dumps([asdict(workload) for workload in workloads], indent=2))
        return
    rows = [("NAME", "SECTION", "SUMMARY"), *((w.name, w.section, w.summary) for w in workloads)]
    name_width, section_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, section, summary in rows:
        click.echo(f"{name:<{name_width}}  {section:<{section_width}}  {summary}")


@command.command(name="show")
@click.argument("name", shell_complete=completing.workload)
@format_option
def show(name: str, form: str) -> None:
    """Show one workload.

    Prints the summary, the section of the study notes, and a picture of the concurrency model.
    """
    from sandbox import workloads as catalogue

    workload = catalogue.describe(name)
    if form == "json":
        click.echo(json.dumps(asdict(workload), indent=2))
        return
    click.echo(f"{workload.name} (section {workload.section}): {workload.summary}\n\n{workload.picture}")
