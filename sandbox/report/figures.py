"""Format numbers for people: three significant digits, units in the column's head, an en dash if there is no value."""

from __future__ import annotations

import math

from sandbox.results import Estimate

NOTHING = "–"
MIB = 1024 * 1024


def digits(value: float, significant: int = 3) -> str:
    """Format a number with this many significant digits and thousands separators, never with an exponent."""
    if value == 0:
        return "0"
    places = significant - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    return f"{rounded:,.{min(max(places, 0), 9)}f}"


def scaled(figure: Estimate | None, unit: float) -> Estimate | None:
    """Convert an estimate to another unit; `unit` is its size."""
    if figure is None:
        return None
    low = None if figure.low is None else figure.low / unit
    high = None if figure.high is None else figure.high / unit
    return Estimate(figure.median / unit, low, high, figure.n)


def middle(figure: Estimate | None) -> str:
    """Format the median."""
    return NOTHING if figure is None else digits(figure.median)


def interval(figure: Estimate | None) -> str:
    """Format the interval as "[low, high]"."""
    if figure is None or figure.low is None or figure.high is None:
        return NOTHING
    return f"[{digits(figure.low)}, {digits(figure.high)}]"


def milliseconds(seconds: float | None) -> str:
    """Format a duration in ms, without the unit."""
    return NOTHING if seconds is None else digits(seconds * 1000)


def duration(seconds: float) -> str:
    """Format a duration with its unit, from microseconds to seconds."""
    value, unit = _fitting(seconds)
    return f"{digits(value)} {unit}"


def tick(seconds: float) -> str:
    """Format a round duration with its unit, without trailing zeros."""
    value, unit = _fitting(seconds)
    return f"{value:,.6g} {unit}"


def _fitting(seconds: float) -> tuple[float, str]:
    for limit, size, unit in ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms")):
        if seconds < limit * (1 - 1e-9):
            return seconds / size, unit
    return seconds, "s"


def ratio(figure: Estimate | None) -> str:
    """Format a ratio with a times sign."""
    return NOTHING if figure is None else f"{digits(figure.median)}×"


def plain(text: str) -> str:
    """Replace control characters in a text, so that a document cannot control a terminal or break a table."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
