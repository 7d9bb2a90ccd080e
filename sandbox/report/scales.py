"""Axes: map values to pixels, and choose ticks. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis.

    Attributes:
        low, high: the values at its ends.
        start, end: the pixels at its ends.
        ticks: values to mark.
        logarithmic: whether equal ratios take equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def at(self, value: float) -> float:
        """Return the pixel of a value; values beyond the ends are moved to the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def logarithmic(values: Iterable[float], start: float, end: float) -> Scale:
    """Make an axis over all positive values, with room at both ends. It has no zero, so it is not for bars."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.25, max(positive) * 1.25
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = tuple(tick for power in powers for step in steps if low <= (tick := step * 10.0**power) <= high)
    return Scale(low, high, start, end, ticks, logarithmic=True)


def linear(values: Iterable[float], start: float, end: float, steps: int = 5) -> Scale:
    """Make an axis from zero, so that lengths can be compared, to a round number above all values."""
    top = max((value for value in values if value > 0), default=1.0)
    raw = top / steps
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(size * magnitude for size in (1, 2, 2.5, 5, 10) if size * magnitude >= raw * (1 - 1e-9))
    count = math.ceil(top / step - 1e-9)
    return Scale(0.0, step * count, start, end, tuple(step * index for index in range(count + 1)), logarithmic=False)
