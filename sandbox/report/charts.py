"""Compute the geometry of the charts, which templates/charts.svg draws without scripts.

The charts are legible without colour, have a text alternative for screen readers, and a table beside them on the page.
Startup differs by a factor of a hundred between levels, so times are points on a logarithmic axis (which has no zero
for a bar to start at), and the phases are shown beside them as shares of each level's total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandbox.report import figures, scales
from sandbox.report.scales import Scale
from sandbox.results import PERCENTILES, PHASES, Document, Estimate, LevelInfo, Sample, Summary

WIDTH = 960
LABEL = 150
ROW = 46
TOP = 44
BOTTOM = 30
SHARES = 590.0
"""Left end of the phases' shares, to the right of the startup axis."""
RIGHT = WIDTH - 190.0
"""Right end of the latency lines; their labels are to the right of it."""
MIN_SHARE_LABEL = 0.15
"""Minimum share of a phase whose bar has room for a label."""


@dataclass(frozen=True, slots=True)
class Row:
    """A level's row: its samples, its median (or None), and the same as text."""

    info: LevelInfo
    y: float
    dots: list[float]
    summary: Summary | None
    figure: Estimate | None
    text: str

    @property
    def extent(self) -> tuple[float, float]:
        """The lowest and highest value in the row."""
        figure = self.figure
        ends = [] if figure is None else [figure.median, figure.low or figure.median, figure.high or figure.median]
        return min(ends + self.dots), max(ends + self.dots)

    @property
    def shares(self) -> list[tuple[str, float, float]]:
        """Each phase with its seconds, and its share of the sum of all phases."""
        found = self.summary.phases_s if self.summary else {}
        total = sum(found.values()) or 1.0
        return [(phase, found[phase], found[phase] / total) for phase in PHASES if phase in found]


@dataclass(frozen=True, slots=True)
class Trace:
    """A level's line over the percentiles: its points with their texts, and the position of its label."""

    info: LevelInfo
    points: list[tuple[float, float, str]]
    label_y: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, as the template draws it."""

    name: str
    description: str
    height: float
    axis: Scale
    rows: list[Row] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    places: dict[str, float] = field(default_factory=dict)


def startup(document: Document) -> Chart:
    """Return the chart of startup: points with intervals on a logarithmic axis, and shares of the phases."""
    rows = _rows(document, lambda summary: summary.startup_s, lambda sample: sample.startup_s, "ms", 1e-3)
    axis = scales.logarithmic([value for row in rows for value in row.dots], LABEL + 10, 530)
    return _chart("startup", "Startup to the first correct reply", rows, axis)


def throughput(document: Document) -> Chart:
    """Return the chart of throughput: bars from zero with intervals, and a dot for every sample."""
    rows = _rows(
        document,
        lambda summary: summary.requests_per_s,
        lambda sample: sample.load.requests_per_s if sample.load else None,
        "requests/s",
    )
    axis = scales.linear([value for row in rows for value in row.dots], LABEL + 10, WIDTH - 130)
    return _chart("throughput", "Throughput under saturation", rows, axis)


def latency(document: Document) -> Chart:
    """Return the chart of latency: a line per level over the percentiles, on a logarithmic axis."""
    shown: list[tuple[LevelInfo, dict[str, Estimate]]] = []
    for info in document.levels:
        summary = document.summary_of(info.name)
        found = {name: summary.latency_s[name] for name in PERCENTILES if name in summary.latency_s} if summary else {}
        if found:
            shown.append((info, found))
    height = 330.0
    axis = scales.logarithmic([figure.median for _, found in shown for figure in found.values()], height - BOTTOM, 20)
    places = {name: LABEL + (RIGHT - LABEL) * at / (len(PERCENTILES) - 1) for at, name in enumerate(PERCENTILES)}
    lines = [
        [(places[name], axis.at(it.median), f"{name}: {_words(it, 'ms', 1e-3)}") for name, it in found.items()]
        for _, found in shown
    ]
    ends = _spread([line[-1][1] for line in lines], 17)
    traces = [Trace(info, line, end) for (info, _), line, end in zip(shown, lines, ends, strict=True)]
    listed = (
        f"{info.label} " + ", ".join(f"{name} {figures.duration(figure.median)}" for name, figure in found.items())
        for info, found in shown
    )
    description = "Latency under saturation: " + "; ".join(listed)
    return Chart("latency", description, height, axis, traces=traces, places=places)


def _chart(name: str, title: str, rows: list[Row], axis: Scale) -> Chart:
    described = "; ".join(f"{row.info.label} {row.text}" for row in rows if row.figure)
    return Chart(name, f"{title}: {described}", TOP + ROW * len(rows) + BOTTOM, axis, rows)


def _rows(
    document: Document,
    estimate: Callable[[Summary], Estimate | None],
    value: Callable[[Sample], float | None],
    unit: str,
    size: float = 1.0,
) -> list[Row]:
    rows = []
    for index, info in enumerate(document.levels):
        sound = [one for one in document.samples if one.level == info.name and one.round > 0 and one.error is None]
        dots = [found for sample in sound if (found := value(sample)) is not None]
        summary = document.summary_of(info.name)
        figure = estimate(summary) if summary else None
        text = _words(figure, unit, size) if figure else ""
        rows.append(Row(info, TOP + ROW * index + ROW / 2, dots, summary, figure, text))
    return rows


def _words(figure: Estimate, unit: str, size: float) -> str:
    """Format a median with its interval, in a unit of the given size."""
    scaled = figures.scaled(figure, size)
    interval = figures.interval(scaled)
    return f"{figures.middle(scaled)} {unit}" + ("" if interval == figures.NOTHING else f", 95 % {interval}")


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions close to the wanted ones, but at least `gap` apart, in the given order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: dict[int, float] = {}
    previous = float("-inf")
    for index in order:
        previous = max(wanted[index], previous + gap)
        placed[index] = previous
    # Move the positions back by their mean displacement.
    if order:
        shift = sum(placed[index] - wanted[index] for index in order) / len(order)
        placed = {index: y - shift for index, y in placed.items()}
    return [placed[index] for index in range(len(wanted))]
