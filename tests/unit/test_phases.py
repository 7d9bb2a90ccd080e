"""The timeline refuses phases that overlap or are out of order."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sandbox.phases import ORDER, Phase, Timeline
from sandbox.state import codec


def whole() -> Timeline:
    line = Timeline()
    for number, phase in enumerate(ORDER):
        line.record(phase, number * 10, number * 10 + 5)
    return line


def test_durations_and_total() -> None:
    line = whole()
    assert line.complete
    assert list(line.durations()) == ["prepare", "create", "boot", "start", "first_reply"]
    assert set(line.durations().values()) == {5e-9}
    assert line.total() == 45e-9
    assert Timeline().total() == 0.0


def test_round_trip() -> None:
    assert codec.decode(Timeline, json.loads(json.dumps(dataclasses.asdict(whole()))), "timeline") == whole()


@pytest.mark.parametrize(
    ("phase", "begin", "end"),
    [(Phase.BOOT, 20, 30), (Phase.PREPARE, 20, 30), (Phase.CREATE, 5, 30), (Phase.CREATE, 30, 20)],
)
def test_what_cannot_be(phase: Phase, begin: int, end: int) -> None:
    line = Timeline()
    line.record(Phase.PREPARE, 0, 10)
    with pytest.raises(ValueError, match="phase"):
        line.record(phase, begin, end)


def test_nothing_after_the_last() -> None:
    with pytest.raises(ValueError, match="order"):
        whole().record(Phase.PREPARE, 100, 110)
