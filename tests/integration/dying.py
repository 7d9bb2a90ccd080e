"""Runs a command of `sandbox` and dies at one failpoint of it: python -m tests.integration.dying PLAN COMMAND...

PLAN is JSON: {"log": path} to write down every failpoint that is passed, a number a line; or {"at": [failpoint,
which], "signals": [name, ...]} to send the first signal when that failpoint is passed for the which-th time (from 0),
and the others one by one at the failpoints after it. They go to its process group, as a terminal sends them, which it
leads; the keeper is in one of its own.

Not a test; `test_crash.py` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import failpoints
from sandbox.cli import main
from sandbox.failpoints import Failpoint


def recording(path: Path) -> Callable[[Failpoint], None]:
    """Write down what is passed, at once: the processes that a command forks write to the same file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.set_inheritable(descriptor, False)

    def listen(failpoint: Failpoint) -> None:
        os.write(descriptor, f"{failpoint.value}\n".encode())

    return listen


def dying(at: tuple[int, int], names: list[str]) -> Callable[[Failpoint], None]:
    """Send signals, the first one at the point, the others at what comes after it."""
    passed: Counter[int] = Counter()
    pending = [getattr(signal, name) for name in names]
    begun = False

    def listen(failpoint: Failpoint) -> None:
        nonlocal begun
        begun = begun or (failpoint.value, passed[failpoint.value]) == at
        passed[failpoint.value] += 1
        if begun and pending:
            os.killpg(0, pending.pop(0))

    return listen


def listener(plan: dict[str, Any]) -> Callable[[Failpoint], None]:
    """What a plan says."""
    if "log" in plan:
        return recording(Path(plan["log"]))
    number, which = plan["at"]
    return dying((number, which), plan["signals"])


if __name__ == "__main__":
    os.setpgid(0, 0)
    failpoints.listener = listener(json.loads(sys.argv[1]))
    sys.argv = ["sandbox", *sys.argv[2:]]
    main()
