"""Compute figures from raw samples: medians, intervals, paired ratios, and caveats. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sandbox.measure import stats
from sandbox.results import PERCENTILES, PHASES, Caveat, Document, Estimate, Sample, Summary

WARM_UP = 0
"""The number of the round that is not counted."""
STEAL_SHARE = 0.01
"""Share of the CPU time during a sample above which other guests of the hypervisor affect the figures."""


def counted(samples: Sequence[Sample], level: str) -> list[Sample]:
    """Return the counted samples of a level: all but the warm-up, including failed ones."""
    return [sample for sample in samples if sample.level == level and sample.round != WARM_UP]


def summarise(document: Document) -> list[Summary]:
    """Return the figures of every level that has a counted sample, in the document's order of levels."""
    baseline = _sound(counted(document.samples, document.plan.baseline))
    return [
        _summarise(info.name, samples, baseline)
        for info in document.levels
        if (samples := counted(document.samples, info.name))
    ]


def _summarise(level: str, samples: Sequence[Sample], baseline: Sequence[Sample]) -> Summary:
    sound = _sound(samples)
    startup = _estimate(sound, _startup)
    throughput = _estimate(sound, _throughput)
    named = {"startup": startup, "throughput": throughput}
    return Summary(
        level=level,
        attempted=len(samples),
        failed=len(samples) - len(sound),
        startup_s=startup,
        startup_ratio=_ratio(sound, baseline, _startup),
        phases_s={
            phase: stats.median(values)
            for phase in PHASES
            if (values := [sample.phases_s[phase] for sample in sound if phase in sample.phases_s])
        },
        requests_per_s=throughput,
        throughput_ratio=_ratio(sound, baseline, _throughput),
        latency_s={name: figure for name in PERCENTILES if (figure := _estimate(sound, _latency(name)))},
        memory_bytes=_estimate(sound, _memory),
        request_errors=sum(sum(sample.load.errors.values()) for sample in samples if sample.load),
        unstable=[name for name, figure in named.items() if stats.unstable(figure)],
    )


def caveats(document: Document) -> list[Caveat]:
    """Return the caveats about the figures that the samples themselves show."""
    found = []
    stolen = [sample.steal_share for sample in document.samples if (sample.steal_share or 0) > STEAL_SHARE]
    if stolen:
        share = f"in {len(stolen)} of {len(document.samples)} samples, the hypervisor gave CPU time to other guests"
        found.append(Caveat("steal", f"{share}, up to {max(filter(None, stolen)):.0%}"))
    for summary in document.summary:
        label = document.info(summary.level).label
        if summary.failed:
            text = f"{label}: {summary.failed} of {summary.attempted} samples failed and are not in the figures"
            found.append(Caveat("failed", f"{text}; first: {_first_error(document, summary.level)}"))
        if summary.request_errors:
            found.append(Caveat("request-errors", f"{label}: {summary.request_errors} requests under load failed"))
    return found + _unstable(document)


def _unstable(document: Document) -> list[Caveat]:
    found = []
    for name in dict.fromkeys(name for summary in document.summary for name in summary.unstable):
        labels = [document.info(summary.level).label for summary in document.summary if name in summary.unstable]
        wide = f"the interval is wider than {stats.UNSTABLE_WIDTH:.0%} of the median"
        found.append(Caveat("unstable", f"unstable {name} at {', '.join(labels)}: {wide}"))
    return found


def _sound(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.error is None]


Figure = Callable[[Sample], float | None]


def _estimate(samples: Sequence[Sample], figure: Figure) -> Estimate | None:
    return stats.estimate([value for sample in samples if (value := figure(sample)) is not None])


def _ratio(samples: Sequence[Sample], baseline: Sequence[Sample], figure: Figure) -> Estimate | None:
    return stats.paired_ratio(_by_round(samples, figure), _by_round(baseline, figure))


def _by_round(samples: Sequence[Sample], figure: Figure) -> dict[int, float]:
    return {sample.round: value for sample in samples if (value := figure(sample)) is not None}


def _startup(sample: Sample) -> float | None:
    return sample.startup_s


def _throughput(sample: Sample) -> float | None:
    return sample.load.requests_per_s if sample.load else None


def _memory(sample: Sample) -> float | None:
    return float(sample.memory_bytes) if sample.memory_bytes is not None else None


def _latency(name: str) -> Figure:
    return lambda sample: sample.load.latency_s.get(name) if sample.load else None


def _first_error(document: Document, level: str) -> str:
    return next(sample.error for sample in counted(document.samples, level) if sample.error is not None)
