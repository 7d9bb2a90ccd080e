"""Medians with bootstrap intervals, and paired ratios. Pure.

The unit of resampling is the sandbox: requests within one sandbox depend on each other, so a thousand of them are not
a thousand samples. The bootstrap distribution of a median is known in closed form (Efron 1979; Maritz and Jarrett,
"A note on estimating the variance of the sample median", JASA 73, 1978), so it is computed and not simulated. This is
the limit of infinitely many resamples; it needs no seed, and the same samples always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sandbox.results import Estimate

CONFIDENCE = 0.95
UNSTABLE_WIDTH = 0.25
"""An interval wider than this share of its median is called unstable: it hides a difference of ten per cent."""
FEW_SAMPLES = 6
"""Below six samples, even the range from the smallest to the largest contains the median with a probability below
95 % (1 - 2·0.5^n), so there is no interval."""
MAX_SAMPLES = 1000
"""Maximum number of samples: beyond it, the binomial coefficients exceed the range of a float."""
NEGLIGIBLE = 1e-15
"""Probability below which a value is ignored. Even hundreds of such values do not change a quantile."""


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle values.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the median needs at least one value")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    # Halved before they are added, so that the sum of two large values cannot overflow.
    return ordered[middle - 1] / 2 + ordered[middle] / 2


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact percentile bootstrap interval of the median.

    Raises:
        ValueError: there are no values, or more than MAX_SAMPLES.
    """
    if not 0 < len(values) <= MAX_SAMPLES:
        raise ValueError(f"an interval of {len(values)} values")
    distribution = sorted(_bootstrap_distribution(sorted(values)))
    tail = (1 - confidence) / 2
    return _quantile(distribution, tail), _quantile(distribution, 1 - tail)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the median with its interval; None if there are no values. A single value has no interval."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, None, 1)
    low, high = median_interval(values)
    return Estimate(median(values), low, high, len(values))


def paired_ratio(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Return the median of the ratios to the baseline, each within one round.

    Pairing removes drift between rounds, as both values of a pair were measured within seconds of each other.

    Args:
        values: values by round. A round that is not in both, or whose baseline is 0, has no ratio.
        baseline: values of the baseline by round.
    """
    rounds = sorted(values.keys() & baseline.keys())
    return estimate([values[number] / baseline[number] for number in rounds if baseline[number] > 0])


def unstable(figure: Estimate | None) -> bool:
    """Return whether the interval is so wide that the figure says little."""
    width = figure.relative_width if figure is not None else None
    return width is not None and width > UNSTABLE_WIDTH


def _bootstrap_distribution(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """Return the possible values of the median of a resample, each with its probability."""
    size = len(ordered)
    if size % 2:
        below = [_order_statistic(size, (size + 1) // 2, rank) for rank in range(size + 1)]
        return [(ordered[rank], below[rank + 1] - below[rank]) for rank in range(size)]
    half = size // 2
    below = [_order_statistic(size, half, rank) for rank in range(size + 1)]
    ways = math.comb(size, half)
    result: list[tuple[float, float]] = []
    for low in range(size):
        # The lower middle is ordered[low] and the upper middle is ordered[high], high > low: exactly half of the
        # draws have a rank of `low` or less, and the others `high` or more.
        lower = ((low + 1) / size) ** half - (low / size) ** half
        same = below[low + 1] - below[low]
        if same < NEGLIGIBLE:
            continue
        for high in range(low + 1, size):
            upper = ((size - high) / size) ** half - ((size - high - 1) / size) ** half
            chance = ways * lower * upper
            if chance < NEGLIGIBLE and high > half:
                break  # from here on it only decreases
            same -= chance
            result.append((ordered[low] / 2 + ordered[high] / 2, chance))
        result.append((ordered[low], max(0.0, same)))
    return result


def _order_statistic(size: int, order: int, rank: int) -> float:
    """Return the probability that at least `order` of `size` draws are among the `rank` smallest of `size` values."""
    if abs(rank - size / 2) > 6 * math.sqrt(size):
        # The error is below exp(-72), by Hoeffding's inequality. This also keeps large samples fast.
        return float(rank > size / 2)
    share = rank / size
    return math.fsum(
        math.comb(size, count) * share**count * (1 - share) ** (size - count) for count in range(order, size + 1)
    )


def _quantile(distribution: Sequence[tuple[float, float]], level: float) -> float:
    """Return the smallest value whose cumulative probability reaches `level`."""
    total = 0.0
    for value, chance in distribution:
        total += chance
        if total >= level - 1e-12:
            return value
    return distribution[-1][0]
