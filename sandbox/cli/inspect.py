"""`sandbox inspect`: show everything about a sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.completing import existing
from sandbox.spec import MIB

if TYPE_CHECKING:
    from sandbox.cli.facts import Fact
    from sandbox.isolation.in_force import Inspection

UNKNOWN = "-"
"""Stands for a value that cannot be observed."""


@click.command()
@click.option(
    "--format", "form", type=click.Choice(["json", "table"]), default="json", show_default=True, help="Output format."
)
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...", shell_complete=existing)
def command(form: str, sandboxes: tuple[str, ...]) -> None:
    """Show everything about each SANDBOX: its state, its requested settings, and those in force.

    `requested` has the requested settings. `effective` has the settings in force, read now from what enforces them (the
    kernel, dockerd, the live domain), in the same form at every level. A value that cannot be observed is null, or - in
    the table. `effective.ended` says when and why a sandbox ended, `effective.oom_killed` whether it ran out of memory.
    `settings` compares requested and effective values. `startup` has the duration of each phase of the start in
    seconds, `resources` the sandbox's resources on this host.

    \b
    Examples:
      sandbox inspect web
      sandbox inspect --format table web
      sandbox inspect web | jq '.[0].effective.limits'
      sandbox inspect web | jq -r '.[0].effective.ended.reason'

    \b
    Exit codes: 0; 125 a sandbox does not exist (the others are still shown).
    """
    from sandbox.cli.each import for_each
    from sandbox.cli.output import as_json

    documents: list[dict[str, Any]] = []
    try:
        for_each(sandboxes, lambda reference: documents.append(asdict(document(reference))), echo=False)
    finally:
        if form == "json":
            as_json(documents)
        else:
            click.echo("\n\n".join("\n".join(page(one)) for one in documents))


@dataclass(frozen=True, slots=True)
class Now:
    """The state of a sandbox as `ps` shows it, and the pids of its process and its owner."""

    status: str
    running: bool | None
    paused: bool
    exit_code: int | None
    pid: int | None
    owner: int | None


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of a sandbox on this host; `level` has those of its level, under names of the level's choice."""

    address: str
    mac: str
    url: str | None
    published: list[str]
    directory: str
    boot_id: str
    level: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """The whole output for one sandbox; docs/inspect.schema.json describes every field."""

    id: str
    name: str
    workload: str
    isolation: str
    accelerator: str | None
    created: str
    state: Now
    settings: list[Fact]
    requested: dict[str, Any]
    effective: Inspection | None
    effective_error: str | None
    startup: dict[str, float]
    resources: Resources


def document(reference: str) -> Document:
    """Return the whole output for one sandbox.

    Raises:
        NotFoundError, StoreError
    """
    from sandbox.cli import facts
    from sandbox.cli.state import shown
    from sandbox.errors import SandboxError
    from sandbox.lifecycle.find import get

    running = get(reference)
    record, spec = running.record, running.record.spec
    effective: Inspection | None = None
    failure = None
    try:
        effective = running.sandbox.inspection()
    except SandboxError as error:
        failure = str(error)
    now = shown(record)
    pid = record.process.pid if record.process is not None and now.running else None
    return Document(
        id=record.id,
        name=record.name,
        workload=spec.workload,
        isolation=spec.isolation,
        accelerator=record.accelerator,
        created=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        state=Now(now.text, now.running, now.paused, now.exit_code, pid, record.owner.pid if record.owner else None),
        settings=facts.compare(record, effective),
        requested=spec.to_json(),
        effective=effective,
        effective_error=failure,
        startup={**record.timeline.durations(), "total": record.timeline.total()},
        resources=Resources(
            address=record.address,
            mac=record.mac,
            url=record.url,
            published=[f"127.0.0.1:{port.host}->{port.inside}" for port in spec.publish],
            directory=str(record.directory),
            boot_id=record.boot_id,
            level=running.sandbox.resources(),
        ),
    )


def page(one: Mapping[str, Any]) -> list[str]:
    """Format the output for one sandbox as lines of tables, without control characters."""
    from sandbox.cli.output import plain, table_lines

    state = one["state"]
    lines = [plain(f"{one['name']}   {one['id']}   {one['workload']}   {one['isolation']}   {state['status']}"), ""]
    lines += table_lines(("SETTING", "REQUESTED", "IN FORCE", ""), map(_setting, one["settings"]))
    lines += ["", *table_lines(("RESOURCE", ""), _flat(one["resources"]))]
    startup = [(phase, f"{seconds:.4f} s") for phase, seconds in one["startup"].items()]
    lines += ["", *table_lines(("STARTUP", ""), startup)]
    asked = {key: value for key, value in one["requested"].items() if key in ("argv", "env", "workdir", "ready_path")}
    lines += ["", *table_lines(("REQUESTED", ""), _flat(asked))]
    if one["effective"] is None:
        return [*lines, "", plain(f"IN FORCE   unknown: {one['effective_error']}")]
    return [*lines, "", *table_lines(("IN FORCE", ""), _flat(one["effective"]))]


def _setting(fact: Mapping[str, Any]) -> tuple[str, ...]:
    shown = _bytes if fact["setting"] in ("memory", "disk") else _text
    requested, effective = shown(fact["requested"]), shown(fact["effective"])
    return (fact["setting"], requested, effective, "DIFFERS" if fact["differs"] else "")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as rows, named by their path."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, inner in enumerate(value):
            if isinstance(inner, Mapping):
                yield f"{name}[{index}]", ", ".join(f"{key} {_text(item)}" for key, item in inner.items())
            else:
                yield f"{name}[{index}]", _text(inner)
    else:
        yield name, _text(value)


def _bytes(value: Any) -> str:
    """Format a size: rounded if it is a multiple of 1 MiB, else in bytes, so that no difference is hidden."""
    from sandbox.cli.output import binary_size

    return binary_size(value) if isinstance(value, int) and value % MIB == 0 else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and not value:
        return "none"
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
