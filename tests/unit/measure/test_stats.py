"""Medians, their intervals, and paired ratios."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.measure import stats
from sandbox.results import Estimate

finite = st.floats(min_value=-1e300, max_value=1e300)


@given(st.lists(finite, min_size=1, max_size=40))
def test_the_median_is_the_textbook_one(values: list[float]) -> None:
    assert stats.median(values) == pytest.approx(statistics.median(values), rel=1e-12)


@given(st.lists(finite, min_size=2, max_size=40))
def test_the_interval_holds_the_median_and_stays_within_the_values(values: list[float]) -> None:
    figure = stats.estimate(values)
    assert figure is not None
    assert figure.low is not None
    assert figure.high is not None
    assert min(values) <= figure.low <= figure.median <= figure.high <= max(values)


@given(st.lists(finite, min_size=1, max_size=60))
def test_the_bootstrap_distribution_is_one(values: list[float]) -> None:
    chances = [chance for _, chance in stats._bootstrap_distribution(sorted(values))]
    assert sum(chances) == pytest.approx(1, abs=1e-9)
    assert min(chances) >= 0


@pytest.mark.parametrize("size", [2, 3, 5, 8, 11, 20])
def test_the_exact_interval_is_what_a_simulation_comes_to(size: int) -> None:
    chance = random.Random(size)
    values = [chance.lognormvariate(0, 0.4) for _ in range(size)]
    medians = [statistics.median(chance.choices(values, k=size)) for _ in range(20_000)]
    for level, exact in zip((0.025, 0.975), stats.median_interval(values), strict=True):
        below = sum(value <= exact for value in medians) / len(medians)
        strictly_below = sum(value < exact for value in medians) / len(medians)
        assert strictly_below - 0.01 <= level <= below + 0.01


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    chance = random.Random(7)
    hits = 0
    for _ in range(1000):
        low, high = stats.median_interval([chance.gauss(10, 2) for _ in range(15)])
        hits += low <= 10 <= high
    assert hits >= 920


def test_the_same_samples_give_the_same_interval() -> None:
    values = [3.0, 1.0, 2.0, 9.0, 4.0]
    assert stats.median_interval(values) == stats.median_interval(values[::-1])


def test_one_sample_has_no_interval_and_none_has_no_figure() -> None:
    assert stats.estimate([2.5]) == Estimate(2.5, None, None, 1)
    assert stats.estimate([]) is None


@pytest.mark.parametrize("size", [0, stats.MAX_SAMPLES + 1])
def test_too_few_and_too_many_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="interval of"):
        stats.median_interval([1.0] * size)


def test_the_largest_size_is_quick_enough_and_sound() -> None:
    low, high = stats.median_interval([float(value) for value in range(400)])
    assert 170 < low < 199.5 < high < 230


def test_ratios_are_paired_by_round() -> None:
    # The host slowed down tenfold after round 2; the ratio of each pair is still 2.
    baseline = {1: 1.0, 2: 1.1, 3: 10.0, 4: 11.0}
    values = {1: 2.0, 2: 2.2, 3: 20.0, 4: 22.0}
    figure = stats.paired_ratio(values, baseline)
    assert figure is not None
    assert (figure.median, figure.low, figure.high) == pytest.approx((2, 2, 2))


def test_rounds_without_a_partner_have_no_ratio() -> None:
    figure = stats.paired_ratio({1: 2.0, 3: 9.0}, {1: 1.0, 2: 1.0})
    assert figure == Estimate(2.0, None, None, 1)
    assert stats.paired_ratio({1: 2.0}, {2: 1.0}) is None
    assert stats.paired_ratio({1: 2.0}, {1: 0.0}) is None


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Estimate(100, 99, 101, 9), False),
        (Estimate(100, 80, 120, 9), True),
        (Estimate(100, None, None, 1), False),
        (None, False),
    ],
)
def test_a_wide_interval_is_called_unstable(figure: Estimate | None, expected: bool) -> None:
    assert stats.unstable(figure) is expected
