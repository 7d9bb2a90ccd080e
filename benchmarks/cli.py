"""Measure the command line itself: `sandbox --help` and `sandbox ps`, against an interpreter that imports click.

    python benchmarks/cli.py [--rounds N] [--json]

The difference should be at most 60 ms: neither command may import an engine's library.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox.measure import stats

CLICK = 'python -c "import click"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sandbox = str(Path(sys.executable).with_name("sandbox"))
    contenders: dict[str, Callable[[], float]] = {
        CLICK: lambda: seconds([sys.executable, "-c", "import click"]),
        "sandbox --help": lambda: seconds([sandbox, "--help"]),
        "sandbox ps": lambda: seconds([sandbox, "ps"]),
    }
    series = common.interleave(contenders, options.rounds, options.seed)
    common.report("the command line", "ms", series, dict.fromkeys(contenders, CLICK), as_json=options.json, scale=1000)
    if not options.json:
        base = series[0].values
        for one in series[1:]:
            more = stats.estimate([one.values[number] - base[number] for number in one.values])
            if more is not None:
                print(f"  {one.name} takes {more.median * 1000:.0f} ms more than {CLICK}")


def seconds(argv: list[str]) -> float:
    """Run a command without its output; return its wall time."""
    begin = time.monotonic()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "NO_COLOR": "1"}, timeout=60)
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
