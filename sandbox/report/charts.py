"""The charts, as SVG of our own: no library, no script, styled by report.css, legible without colour.

Each has a text alternative for screen readers and a table beside it in the page. Startup spans a factor of a hundred
between levels, so times stand as points on a logarithmic axis (a bar there would have no zero to grow from), and the
phases stand beside them as shares of each level's own whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sandbox.report import figures, scales, tables
from sandbox.report.markup import Markup, element, join, text
from sandbox.report.scales import Scale
from sandbox.results import PERCENTILES, PHASES, Document, Estimate, LevelInfo, Sample, Summary

WIDTH = 960
LABEL = 150
ROW = 46
TOP = 44
BOTTOM = 30
MIN_SHARE_LABEL = 0.15
"""A share narrower than this has no room for its label."""


def startup(document: Document) -> Markup:
    """Points with intervals on a logarithmic axis, and the phases as shares of each whole."""
    axis = scales.logarithmic(_startup_values(document), LABEL + 10, 530)
    rows = [_axis(axis, len(document.levels), "ms, logarithmic", lambda value: f"{value * 1000:,.6g}")]
    rows.append(_phase_legend())
    for index, info in enumerate(document.levels):
        y = TOP + ROW * index + ROW / 2
        rows.append(_row_label(info, y))
        summary = document.summary_of(info.name)
        if summary is None or summary.startup_s is None:
            rows.append(_absent(info, axis.start, y))
            continue
        dots = [sample.startup_s for sample in _sound(document, info.name) if sample.startup_s is not None]
        caption = f"{info.label}: {_with_interval(figures.scaled(summary.startup_s, 1e-3), 'ms')}"
        rows.append(_points(axis, summary.startup_s, dots, y, info.name, caption))
        if summary.phases_s:
            rows.append(_shares(summary, info, y))
    return _svg(document, "startup", _startup_text(document), rows)


def throughput(document: Document) -> Markup:
    """Bars from zero with intervals and every sample as a dot."""
    axis = scales.linear(_throughput_values(document), LABEL + 10, WIDTH - 130)
    rows = [_axis(axis, len(document.levels), "requests per second", lambda value: f"{value:,.0f}")]
    for index, info in enumerate(document.levels):
        y = TOP + ROW * index + ROW / 2
        rows.append(_row_label(info, y))
        summary = document.summary_of(info.name)
        figure = summary.requests_per_s if summary else None
        if summary is None or figure is None:
            rows.append(_absent(info, axis.start, y))
            continue
        caption = f"{info.label}: {_with_interval(figure, 'requests/s')}"
        length = axis.at(figure.median) - axis.start
        rows.append(
            element("rect", x=axis.start, y=y - 11, width=max(length, 1), height=22, rx=2, class_=f"bar {_hue(info)}")
        )
        dots = [sample.load.requests_per_s for sample in _sound(document, info.name) if sample.load]
        rows.append(_points(axis, figure, dots, y, info.name, caption, on_bar=True))
        end = axis.at(max([figure.median, figure.high or 0.0, *dots]))
        rows.append(_value_label(end + 12, y, figures.digits(figure.median), figures.ratio(summary.throughput_ratio)))
    return _svg(document, "throughput", _throughput_text(document), rows)


def latency(document: Document) -> Markup:
    """A line per level over the percentiles, on a logarithmic axis."""
    shown = [(info, summary) for info in document.levels if (summary := _with_latency(document, info))]
    height, right = 330.0, WIDTH - 190.0
    values = [figure.median for _, summary in shown for figure in summary.latency_s.values()]
    axis = scales.logarithmic(values, height - BOTTOM, 20)
    places = [LABEL + (right - LABEL) * index / (len(PERCENTILES) - 1) for index in range(len(PERCENTILES))]
    parts = []
    for tick in axis.ticks:
        y = axis.at(tick)
        parts.append(element("line", x1=LABEL - 20, y1=y, x2=right + 20, y2=y, class_="grid"))
        parts.append(element("text", text(figures.tick(tick)), x=LABEL - 28, y=y + 4, class_="tick end"))
    for place, name in zip(places, PERCENTILES, strict=True):
        parts.append(element("text", text(name), x=place, y=height - 6, class_="tick middle"))
    ends = []
    for info, summary in shown:
        points = [
            (place, axis.at(summary.latency_s[name].median), name)
            for place, name in zip(places, PERCENTILES, strict=True)
            if name in summary.latency_s
        ]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(element("polyline", points=path, class_=f"trace {_hue(info)}"))
        for x, y, name in points:
            caption = f"{info.label}, {name}: {_with_interval(figures.scaled(summary.latency_s[name], 1e-3), 'ms')}"
            parts.append(element("circle", _title(caption), cx=x, cy=y, r=4.5, class_=f"dot {_hue(info)}"))
        ends.append((points[-1][1], info))
    for y, (where, info) in zip(_spread([end for end, _ in ends], 17), ends, strict=True):
        parts.append(element("line", x1=right + 6, y1=where, x2=right + 26, y2=y, class_=f"leader {_hue(info)}"))
        parts.append(element("text", text(info.label), x=right + 30, y=y + 4, class_=f"label {_hue(info)}"))
    return _frame("latency", _latency_text(shown), parts, height)


def _svg(document: Document, name: str, description: str, rows: Sequence[Markup]) -> Markup:
    return _frame(name, description, rows, TOP + ROW * len(document.levels) + BOTTOM)


def _frame(name: str, description: str, parts: Sequence[Markup], height: float) -> Markup:
    return element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=description, class_=f"chart {name}"
    )


def _axis(axis: Scale, rows: int, unit: str, label: Callable[[float], str]) -> Markup:
    bottom = TOP + ROW * rows
    parts = [element("text", text(unit), x=axis.start, y=16, class_="unit")]
    for tick in axis.ticks:
        x = axis.at(tick)
        parts.append(element("line", x1=x, y1=TOP - 8, x2=x, y2=bottom, class_="grid"))
        parts.append(element("text", text(label(tick)), x=x, y=bottom + 18, class_="tick middle"))
    return join(*parts)


def _row_label(info: LevelInfo, y: float) -> Markup:
    name, bracket, rest = info.label.partition(" (")
    main = element("text", text(name), x=LABEL - 8, y=y + (-2 if bracket else 4), class_="label end")
    if not bracket:
        return main
    return join(main, element("text", text(bracket.strip() + rest), x=LABEL - 8, y=y + 14, class_="sublabel end"))


def _absent(info: LevelInfo, x: float, y: float) -> Markup:
    why = "not on this host" if not info.available else "no figure: every sample failed or none was counted"
    return element("text", text(why), x=x, y=y + 4, class_="absent")


def _points(
    axis: Scale, figure: Estimate, dots: Sequence[float], y: float, level: str, caption: str, *, on_bar: bool = False
) -> Markup:
    hue = f"level-{level}"
    parts = [_title(caption)]
    for index, value in enumerate(dots):
        # Spread up and down in a fixed pattern, so that equal samples do not hide each other.
        offset = ((index * 5) % 7 - 3) * 2.2
        parts.append(element("circle", cx=axis.at(value), cy=y + offset, r=2.6, class_=f"sample {hue}"))
    if figure.low is not None and figure.high is not None:
        low, high = axis.at(figure.low), axis.at(figure.high)
        parts.append(element("line", x1=low, y1=y, x2=high, y2=y, class_="whisker"))
        for x in (low, high):
            parts.append(element("line", x1=x, y1=y - 6, x2=x, y2=y + 6, class_="whisker"))
    if not on_bar:
        x = axis.at(figure.median)
        parts.append(element("circle", cx=x, cy=y, r=5.5, class_=f"dot {hue}"))
        parts.append(_time_label(axis, figure, dots, y))
    return element("g", *parts)


def _time_label(axis: Scale, figure: Estimate, dots: Sequence[float], y: float) -> Markup:
    """To the right of everything of its row, or to the left where the axis ends."""
    values = [figure.median, figure.low or figure.median, figure.high or figure.median, *dots]
    right = axis.at(max(values)) + 12
    content = text(figures.duration(figure.median))
    if right + 60 <= axis.end + 20:
        return element("text", content, x=right, y=y + 4, class_="value")
    return element("text", content, x=axis.at(min(values)) - 12, y=y + 4, class_="value end")


def _value_label(x: float, y: float, value: str, ratio: str) -> Markup:
    parts = [element("tspan", text(value))]
    if ratio != figures.NOTHING:
        parts.append(element("tspan", text(f"  {ratio}"), class_="muted"))
    return element("text", *parts, x=x, y=y + 4, class_="value")


def _phase_legend() -> Markup:
    parts = [element("text", text("share of each phase"), x=590, y=16, class_="unit")]
    x = 590.0
    for phase in PHASES:
        parts.append(element("rect", x=x, y=25, width=10, height=10, rx=2, class_=f"phase {phase}"))
        name = tables.phase_name(phase)
        parts.append(element("text", text(name), x=x + 14, y=34, class_="tick"))
        x += 26 + 6.6 * len(name)
    return join(*parts)


def _shares(summary: Summary, info: LevelInfo, y: float) -> Markup:
    """Phases as shares of their sum."""
    start, width = 590.0, WIDTH - 590.0
    total = sum(summary.phases_s.values()) or 1.0
    parts, x = [], start
    for phase in PHASES:
        seconds = summary.phases_s.get(phase, 0.0)
        length = width * seconds / total
        name = tables.phase_name(phase)
        caption = f"{info.label}, {name}: {figures.duration(seconds)}, {seconds / total:.0%}"
        parts.append(
            element("rect", _title(caption), x=x, y=y - 13, width=max(length, 0), height=26, class_=f"phase {phase}")
        )
        if seconds / total >= MIN_SHARE_LABEL:
            parts.append(
                element("text", text(figures.duration(seconds)), x=x + length / 2, y=y + 4, class_="inbar middle")
            )
        x += length
    return element("g", *parts)


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions close to those wanted, at least `gap` apart, in the given order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: dict[int, float] = {}
    previous = float("-inf")
    for index in order:
        previous = max(wanted[index], previous + gap)
        placed[index] = previous
    # A group that was pushed down as a whole is moved back to the middle of what it wanted.
    if order:
        shift = sum(placed[index] - wanted[index] for index in order) / len(order)
        placed = {index: y - shift for index, y in placed.items()}
    return [placed[index] for index in range(len(wanted))]


def _title(caption: str) -> Markup:
    return element("title", text(caption))


def _hue(info: LevelInfo) -> str:
    return f"level-{info.name}"


def _sound(document: Document, level: str) -> list[Sample]:
    return [
        sample for sample in document.samples if sample.level == level and sample.round > 0 and sample.error is None
    ]


def _startup_values(document: Document) -> list[float]:
    raw = [sample.startup_s for sample in document.samples if sample.round > 0 and sample.error is None]
    return [value for value in raw if value is not None]


def _throughput_values(document: Document) -> list[float]:
    samples = [sample for sample in document.samples if sample.round > 0 and sample.error is None]
    return [sample.load.requests_per_s for sample in samples if sample.load]


def _with_latency(document: Document, info: LevelInfo) -> Summary | None:
    summary = document.summary_of(info.name)
    return summary if summary is not None and summary.latency_s else None


def _with_interval(figure: Estimate | None, unit: str) -> str:
    shown = figures.interval(figure)
    return f"{figures.middle(figure)} {unit}" + ("" if shown == figures.NOTHING else f", 95 % {shown}")


def _startup_text(document: Document) -> str:
    parts = [
        f"{document.info(summary.level).label} {_with_interval(figures.scaled(summary.startup_s, 1e-3), 'ms')}"
        for summary in document.summary
        if summary.startup_s
    ]
    return "Startup to the first correct reply: " + "; ".join(parts)


def _throughput_text(document: Document) -> str:
    parts = [
        f"{document.info(summary.level).label} {_with_interval(summary.requests_per_s, 'requests/s')}"
        for summary in document.summary
        if summary.requests_per_s
    ]
    return "Throughput under saturation: " + "; ".join(parts)


def _latency_text(shown: Sequence[tuple[LevelInfo, Summary]]) -> str:
    parts = []
    for info, summary in shown:
        listed = ", ".join(f"{name} {figures.duration(figure.median)}" for name, figure in summary.latency_s.items())
        parts.append(f"{info.label} {listed}")
    return "Latency under saturation: " + "; ".join(parts)
