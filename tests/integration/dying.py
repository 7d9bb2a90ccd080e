"""Runs a sandbox in the foreground way and sends itself a signal at one point: python -m tests.integration.dying.

Arguments: level, phase, "before" or "after", signal name. Not a test; `test_crash.py` starts it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox import manager
from sandbox.cli import main
from sandbox.phases import Phase


def arm(phase: str, when: str, number: int) -> None:
    """Let the manager's clock, which every phase passes, send the signal."""
    timed = manager._Clock.phase

    @contextmanager
    def dying(self: manager._Clock, current: Phase) -> Iterator[None]:
        with timed(self, current):
            if (current.value, when) == (phase, "before"):
                os.kill(os.getpid(), number)
            yield
            if (current.value, when) == (phase, "after"):
                os.kill(os.getpid(), number)

    manager._Clock.phase = dying  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    level, phase, when, name = sys.argv[1:]
    arm(phase, when, getattr(signal, name))
    sys.argv = ["sandbox", "run", "reactor", "--isolation", level, "--name", "dying"]
    main()
