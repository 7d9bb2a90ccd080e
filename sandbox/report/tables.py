"""The tables of a comparison, as rows of text; each output format lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sandbox.report import figures
from sandbox.report.figures import NOTHING
from sandbox.results import PERCENTILES, PHASES, Document, LevelInfo, Status, Summary

PHASE_NAMES = {"first_reply": "first reply"}
UNSTABLE_MARK = "~"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: a level or a check.

    Attributes:
        label: the first column.
        cells: the other columns; empty if there is a remark instead.
        remark: why there are no figures.
    """

    label: str
    cells: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: the title.
        head: names of all columns.
        rows: rows in the order of the levels or checks.
        split: first column that may be moved to a second table if lines are too long; 0 for none.
        notes: notes below the table.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    split: int = 0
    notes: tuple[str, ...] = field(default=())


def tables(document: Document) -> list[Table]:
    """Return the tables for which the document has data."""
    found = [startup(document)]
    if document.plan.duration_s:
        found.append(load(document))
    if document.isolation:
        found.append(isolation(document))
    return found


def startup(document: Document) -> Table:
    """Return the table of the time to the first correct reply, and of its phases."""
    baseline = document.info(document.plan.baseline).label
    head = ("LEVEL", "STARTUP ms", "95 %", f"× {baseline}", "95 %", "n", *(phase_name(phase) for phase in PHASES))
    rows = []
    for info in document.levels:
        summary = document.summary_of(info.name)
        if summary is None or summary.startup_s is None:
            rows.append(Row(info.label, remark=_why_empty(info, summary)))
            continue
        total = figures.scaled(summary.startup_s, 1e-3)
        rows.append(
            Row(
                info.label,
                (
                    figures.middle(total) + _mark(summary, "startup"),
                    figures.interval(total),
                    *_ratio(document, summary, "startup"),
                    _count(summary),
                    *(_phase(info, summary, phase) for phase in PHASES),
                ),
            )
        )
    notes = ("each phase is a median of its own, so the phases need not add up to the median of the startup",)
    return Table("Startup to the first correct reply", head, tuple(rows), 6, notes)


def load(document: Document) -> Table:
    """Return the table of throughput and latency under saturation, and of memory."""
    plan = document.plan
    baseline = document.info(plan.baseline).label
    percentiles = tuple(f"{name} ms" for name in PERCENTILES)
    head = ("LEVEL", "REQUESTS /s", "95 %", f"× {baseline}", "95 %", *percentiles, "errors", "MiB")
    rows = []
    for info in document.levels:
        summary = document.summary_of(info.name)
        if summary is None or summary.requests_per_s is None:
            rows.append(Row(info.label, remark=_why_empty(info, summary)))
            continue
        rows.append(
            Row(
                info.label,
                (
                    figures.middle(summary.requests_per_s) + _mark(summary, "throughput"),
                    figures.interval(summary.requests_per_s),
                    *_ratio(document, summary, "throughput"),
                    *(figures.middle(figures.scaled(summary.latency_s.get(name), 1e-3)) for name in PERCENTILES),
                    f"{summary.request_errors:,}",
                    figures.middle(figures.scaled(summary.memory_bytes, figures.MIB)),
                ),
            )
        )
    title = f"Under load: {plan.connections} connections, {plan.duration_s} s per sandbox, GET {plan.path}"
    notes = (
        "latency is under saturation, so it is mostly time in a queue: its mean is connections ÷ throughput",
        "MiB is the memory charged to the sandbox after the load, by the level's own accounting",
    )
    return Table(title, head, tuple(rows), 5, notes)


def isolation(document: Document) -> Table:
    """Return the table of verdicts: a row for each check, a column for each examined level."""
    levels = [info for info in document.levels if any(check.level == info.name for check in document.isolation)]
    verdicts = {(check.check, check.level): check.verdict for check in document.isolation}
    checks = list(dict.fromkeys(check.check for check in document.isolation))
    rows = tuple(Row(name, tuple(str(verdicts.get((name, info.name), NOTHING)) for info in levels)) for name in checks)
    notes = ("each verdict is by a witness on the host; the evidence is in the JSON document and the HTML report",)
    return Table("Isolation", ("CHECK", *(info.label for info in levels)), rows, 0, notes)


def heading(document: Document) -> str:
    """Return one line with the workload, the number of samples and the time."""
    plan = document.plan
    load_part = f", {plan.duration_s} s of load each" if plan.duration_s else ""
    noun = "sandbox" if plan.samples == 1 else "sandboxes"
    return f"{plan.workload}: {plan.samples} {noun} per level{load_part}, seed {plan.seed}, {document.started}"


def status_line(document: Document) -> str | None:
    """Return a line about an incomplete run, or None if it is complete."""
    if document.status is Status.COMPLETE:
        return None
    counted = sum(sample.round > 0 for sample in document.samples)
    planned = document.plan.samples * sum(info.available for info in document.levels)
    return f"INCOMPLETE: the run was interrupted after {counted} of {planned} samples"


def host_lines(document: Document) -> list[tuple[str, str]]:
    """Return the description of the host, as pairs of name and value."""
    host, plan = document.host, document.plan
    lines = [
        ("CPU", f"{host.cpu_model}, {host.cpus} CPUs"),
        ("memory", f"{host.memory_bytes / 1024**3:.1f} GiB"),
        ("kernel", f"{host.kernel} ({host.machine}), cgroups {host.cgroups}, clock {host.clocksource}"),
        ("system", host.system),
        ("virtual machine", "no" if host.virtualisation == "none" else f"yes: {host.virtualisation}"),
        ("governor", host.governor or "none (no frequency scaling by the kernel)"),
        ("load average", ", ".join(f"{value:.2f}" for value in host.load_average) + " before the run"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(host.versions.items()))),
        ("root filesystem", ", ".join(f"{form} {digest[:19]}" for form, digest in sorted(host.images.items()))),
        ("CPUs used", f"server {plan.server_cpus}, generator {plan.generator_cpus}"),
        ("limits", f"{plan.cpus:g} CPU, {plan.memory_bytes // figures.MIB} MiB, {plan.pids_limit} pids"),
        ("sandbox", document.sandbox_version),
    ]
    return [(name, text) for name, text in lines if text]


def method(document: Document) -> list[str]:
    """Return sentences that describe how the figures were obtained."""
    plan = document.plan
    lines = [
        f"Each sample is a fresh sandbox. A round has each level once, in random order (seed {plan.seed}); "
        "the first round is a warm-up and is not counted.",
        "Startup is the time from the request to the first correct reply of the server, by the host's monotonic clock.",
    ]
    if plan.duration_s:
        lines.append(
            f"Then wrk keeps {plan.connections} connections busy for {plan.duration_s} s, from a network namespace "
            f"without a route out, on CPU {plan.generator_cpus}; the server runs on CPU {plan.server_cpus}. "
            "Every level replied with the same bytes."
        )
    lines.append(
        "Figures are medians over sandboxes with 95 % bootstrap intervals; ratios are to "
        f"{document.info(plan.baseline).label}, paired by round. No outliers are removed; failed samples are shown. "
        f"{UNSTABLE_MARK} marks a figure with a wide interval."
    )
    if any(info.emulated for info in document.levels):
        lines.append(
            "The VM's CPU is emulated in software (QEMU TCG), because KVM does not run guests on this host: "
            "its figures show the cost of emulation, not of a hardware VM."
        )
    return lines


def phase_name(phase: str) -> str:
    """Return the name of a phase for a heading."""
    return PHASE_NAMES.get(phase, phase)


def _why_empty(info: LevelInfo, summary: Summary | None) -> str:
    if not info.available:
        remedy = f" → {info.remedy}" if info.remedy else ""
        return f"not available on this host: {info.reason}{remedy}"
    if summary is None:
        return "no sample was counted"
    if summary.failed == summary.attempted:
        return f"all {summary.attempted} samples failed (see the warnings)"
    return "not measured"


def _mark(summary: Summary, name: str) -> str:
    return UNSTABLE_MARK if name in summary.unstable else ""


def _count(summary: Summary) -> str:
    if summary.failed:
        return f"{summary.attempted - summary.failed} of {summary.attempted}"
    return str(summary.attempted)


def _ratio(document: Document, summary: Summary, name: str) -> Sequence[str]:
    if summary.level == document.plan.baseline:
        return ("1", NOTHING)
    figure = summary.startup_ratio if name == "startup" else summary.throughput_ratio
    return (figures.middle(figure), figures.interval(figure))


def _phase(info: LevelInfo, summary: Summary, phase: str) -> str:
    # Levels that share the host's kernel boot nothing, and the rest of the phase is the cost of a call.
    seconds = summary.phases_s.get(phase)
    if phase == "boot" and seconds is not None and seconds < 1e-4:
        return NOTHING
    return figures.milliseconds(seconds) if info.available else NOTHING
