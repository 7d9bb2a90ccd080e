"""Measure the rate at which a workload's output arrives through `sandbox run` at each level, and through `docker run`.

    python benchmarks/output.py [--rounds N] [--levels LIST] [--megabytes N] [--json]

All contenders run interleaved in random order, each in a new sandbox. A value is the number of bytes divided by the
time from the first byte to the last, so that startup does not count.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox import images, isolation
from sandbox.errors import EngineError

MB = 1_000_000
EMULATED = 10
"""Megabytes that an emulated guest writes."""
GOALS = {"vm": 5.0}
GOAL = 50.0
"""Minimum rates in MB/s."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", default=",".join(isolation.LEVELS))
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    contenders: dict[str, Callable[[], float]] = {}
    for level in options.levels.split(","):
        size = (EMULATED if level == "vm" else options.megabytes) * MB
        argv = [sys.executable, "-m", "sandbox", "run", "--rm", "--isolation", level, "--"]
        contenders[level] = partial(rate, argv, size)
    image = images.find(images.Form.DOCKER)
    if shutil.which("docker") and image is not None and image.reference:
        argv = ["docker", "run", "--rm", image.reference]
        contenders["peer: docker run"] = partial(rate, argv, options.megabytes * MB)
    series = common.interleave(contenders, options.rounds, options.seed)
    common.report("output", "MB/s", series, {}, as_json=options.json)
    for one in series:
        goal = GOALS.get(one.name, GOAL)
        if one.name in isolation.LEVELS and one.values and min(one.values.values()) < goal:
            print(f"{one.name}: below {goal:g} MB/s", file=sys.stderr)


def rate(argv: list[str], size: int) -> float:
    """Return the rate, in MB/s, of a command that writes this many zeros."""
    command = [*argv, "head", "-c", str(size), "/dev/zero"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1]) as process:
        assert process.stdout is not None
        descriptor, count, begin = process.stdout.fileno(), 0, 0.0
        while chunk := os.read(descriptor, 1 << 20):
            begin = begin or time.monotonic()
            count += len(chunk)
        took = time.monotonic() - begin
    if process.returncode or count != size:
        raise EngineError(f"exit code {process.returncode}, {count} of {size} bytes")
    return size / MB / took


if __name__ == "__main__":
    main()
