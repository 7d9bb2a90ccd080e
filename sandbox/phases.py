"""The phases of a start, the same at every level, and their timeline. Pure: no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """The phases of a start, in their order.

    `boot` takes no time if the kernel is shared. `first_reply` ends when a correct reply was served.
    """

    PREPARE = "prepare"
    CREATE = "create"
    BOOT = "boot"
    START = "start"
    FIRST_REPLY = "first_reply"


class Status(StrEnum):
    """The state of a sandbox. CREATING lasts until the first reply."""

    CREATING = "creating"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"


ORDER = tuple(Phase)


@dataclass(slots=True)
class Timeline:
    """The begin and end of each phase, in nanoseconds of one monotonic clock.

    Raises:
        ValueError: the spans are out of order.
    """

    spans: dict[Phase, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given, self.spans = self.spans, {}
        for phase, (begin, end) in given.items():
            self.record(phase, begin, end)

    def record(self, phase: Phase, begin: int, end: int) -> None:
        """Add the next phase. It must not overlap the one before.

        Raises:
            ValueError: it is not the next one, or the clock ran backwards.
        """
        done = len(self.spans)
        if done >= len(ORDER) or ORDER[done] is not phase:
            raise ValueError(f"phase {phase} out of order")
        if end < begin or (done and begin < self.spans[ORDER[done - 1]][1]):
            raise ValueError(f"phase {phase} runs backwards")
        self.spans[phase] = (begin, end)

    @property
    def complete(self) -> bool:
        """True if every phase was recorded."""
        return len(self.spans) == len(ORDER)

    def durations(self) -> dict[str, float]:
        """Return the seconds of each phase by its name, in order."""
        return {phase.value: (end - begin) / 1e9 for phase, (begin, end) in self.spans.items()}

    def total(self) -> float:
        """Return the seconds from the begin of the first to the end of the last recorded phase; 0.0 without any."""
        if not self.spans:
            return 0.0
        spans = list(self.spans.values())
        return (spans[-1][1] - spans[0][0]) / 1e9
