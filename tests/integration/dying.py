"""Runs a command of `sandbox` and dies at one failpoint of it: python -m tests.integration.dying PLAN COMMAND...

PLAN is JSON: {"log": path} to write down every failpoint that is passed, a number a line; or {"at": [failpoint,
which], "signals": [name, ...]} to send the first signal when that failpoint is passed for the which-th time (from 0),
and the others one by one at the failpoints after it. A detached start has two processes, the one that was called and
the one that works. SIGTERM goes to the first, as kill(1) would send it; the others go to both, as a terminal and the
kernel send them; with "front": true all go to the first. It leads a process group of its own.

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


def dying(at: tuple[int, int], names: list[str], *, front: bool) -> Callable[[Failpoint], None]:
    """Send signals, the first one at the point, the others at what comes after it."""
    passed: Counter[int] = Counter()
    pending = [getattr(signal, name) for name in names]
    first = os.getpid()
    begun = False

    def listen(failpoint: Failpoint) -> None:
        nonlocal begun
        begun = begun or (failpoint.value, passed[failpoint.value]) == at
        passed[failpoint.value] += 1
        if begun and pending:
            number = pending.pop(0)
            if front or number == signal.SIGTERM:
                os.kill(first, number)
            else:
                os.killpg(first, number)

    return listen


def listener(plan: dict[str, Any]) -> Callable[[Failpoint], None]:
    """What a plan says."""
    if "log" in plan:
        return recording(Path(plan["log"]))
    number, which = plan["at"]
    return dying((number, which), plan["signals"], front=plan.get("front", False))


if __name__ == "__main__":
    os.setpgid(0, 0)
    failpoints.listener = listener(json.loads(sys.argv[1]))
    sys.argv = ["sandbox", *sys.argv[2:]]
    main()
