"""Attempts to exceed a limit: held, not held, and unknown if no counter shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandbox.measure.isolation import verdicts
from sandbox.measure.isolation.observed import DIED, Push
from sandbox.results import Verdict

MIB = 1 << 20
MEMORY = Push(
    limit=128 * MIB,
    asked=160 * MIB,
    got=112 * MIB,
    ended="killed",
    refusals=1,
    counter="memory.events",
    peak=128 * MIB,
    sunk=130 * MIB,
)
PIDS = Push(limit=64, asked=80, got=61, ended="refused: EAGAIN", refusals=1, counter="pids.events", peak=64)
HELD, NOT_HELD, UNKNOWN = Verdict.HELD, Verdict.NOT_HELD, Verdict.UNKNOWN

ROWS: list[tuple[str, Push, dict[str, Any], Verdict]] = [
    ("refused and counted", MEMORY, {}, HELD),
    ("refused and counted", PIDS, {}, HELD),
    ("got all of it", MEMORY, {"got": 160 * MIB, "ended": "complete", "refusals": 0}, NOT_HELD),
    ("got all of it", PIDS, {"got": 80, "ended": "complete", "refusals": 0}, NOT_HELD),
    ("got all of it in spite of refusals", MEMORY, {"got": 160 * MIB, "ended": "complete"}, NOT_HELD),
    ("says it got little, the host charged more", MEMORY, {"peak": 150 * MIB}, NOT_HELD),
    ("says it got little, the host counted more", PIDS, {"peak": 80}, NOT_HELD),
    ("a page of rounding is not more", MEMORY, {"peak": 128 * MIB + 4096}, HELD),
    ("said nothing, but counted", MEMORY, {"got": None, "ended": "no answer in time"}, HELD),
    ("gave up by itself: nothing was refused", MEMORY, {"got": 10 * MIB, "refusals": 0, "peak": 12 * MIB}, UNKNOWN),
    ("gave up by itself: nothing was refused", PIDS, {"got": 5, "refusals": 0, "peak": 8}, UNKNOWN),
    ("died at the limit, and its counter with it", MEMORY, {"got": None, "ended": DIED, "refusals": 0}, HELD),
    (
        "died well below the limit: of something else",
        MEMORY,
        {"got": None, "ended": DIED, "refusals": 0, "peak": 90 * MIB},
        UNKNOWN,
    ),
    (
        "died above the limit",
        MEMORY,
        {"got": None, "ended": DIED, "refusals": 0, "peak": 140 * MIB},
        NOT_HELD,
    ),
    ("nothing counts refusals, but another's count stayed within", PIDS, {"refusals": None}, HELD),
    ("nothing counts refusals, and none was met", PIDS, {"refusals": None, "ended": "exit code 1"}, UNKNOWN),
    ("nothing counts refusals, and another counts more", PIDS, {"refusals": None, "peak": 79}, NOT_HELD),
    ("nothing counts", PIDS, {"refusals": None, "peak": None}, UNKNOWN),
    ("the limit could not be read back", MEMORY, {"limit": None}, UNKNOWN),
    ("the host lost more than the limit explains", MEMORY, {"peak": None, "sunk": 900 * MIB}, UNKNOWN),
    ("the host lost much, but not to this one", MEMORY, {"sunk": 900 * MIB}, HELD),
]


@pytest.mark.parametrize(("why", "push", "changes", "expected"), ROWS)
def test_verdict(why: str, push: Push, changes: dict[str, Any], expected: Verdict) -> None:
    check = verdicts.memory_limit if push is MEMORY else verdicts.pids_limit
    finding = check(replace(push, **changes))
    assert finding.verdict is expected, why
    assert all(text.isprintable() and len(text) < 200 for text in finding.evidence.values())
