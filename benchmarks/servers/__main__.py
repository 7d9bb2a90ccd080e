"""`python -m benchmarks.servers`: measure all servers and their counterparts, interleaved, with ratios and intervals.

In each round every contestant runs once, in a new process and in a random order. A ratio is of one round; its interval
is the bootstrap interval of the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from benchmarks.servers import contestants
from benchmarks.servers.sample import SampleError, Saturation, p99_at, saturate
from sandbox.measure import stats
from sandbox.results import Estimate

Key = tuple[str, str]


def main() -> int:
    """Run the benchmark; return 1 if a target is certainly missed."""
    arguments = _arguments()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("the server and the generator need a CPU each, and this host has only one")
    python = contestants.environment(arguments.venv, _say)
    chosen = [one for one in contestants.CONTESTANTS if not arguments.only or one.name in arguments.only]
    random_order = random.Random(arguments.seed)  # noqa: S311 - an order, not a secret
    runs: dict[Key, dict[int, Saturation]] = defaultdict(dict)
    for number in range(arguments.rounds):
        turn = [(one, mode) for one in chosen for mode in one.modes]
        random_order.shuffle(turn)
        for one, mode in turn:
            _say(f"round {number + 1} of {arguments.rounds}: {one.name}, {mode}")
            try:
                runs[one.name, mode][number] = saturate(one, mode, python, arguments.seconds)
            except SampleError as error:
                _say(f"  no sample: {error}")
    latencies = _latencies(runs, python, arguments, random_order) if not arguments.no_latency else {}
    missed = _print_report(runs, latencies)
    if arguments.output:
        arguments.output.write_text(json.dumps(_document(runs, latencies, arguments), indent=1) + "\n")
    return int(missed)


def _latencies(
    runs: dict[Key, dict[int, Saturation]], python: str, arguments: argparse.Namespace, chance: random.Random
) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """Measure the p99 of the pairs at the same rate; return it by pair, server and round."""
    by_name = {one.name: one for one in contestants.CONTESTANTS}
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for pair in contestants.LATENCY_PAIRS:
        saturation = stats.estimate([run.rate for run in runs.get((pair[1], contestants.KEEP_ALIVE), {}).values()])
        if saturation is None or not runs.get((pair[0], contestants.KEEP_ALIVE)):
            continue
        samples: dict[str, dict[int, float]] = {pair[0]: {}, pair[1]: {}}
        for number in range(arguments.rounds):
            for name in chance.sample(pair, 2):
                _say(f"round {number + 1} of {arguments.rounds}: p99 of {name} at {saturation.median / 2:.0f}/s")
                try:
                    samples[name][number] = p99_at(by_name[name], python, saturation.median / 2, arguments.seconds)
                except SampleError as error:
                    _say(f"  no sample: {error}")
        found[pair] = samples
    return found


def _print_report(
    runs: dict[Key, dict[int, Saturation]], latencies: dict[tuple[str, str], dict[str, dict[int, float]]]
) -> bool:
    """Print the tables; return whether a target is certainly missed."""
    print(f"{'server':<22}{'mode':<26}{'replies/s':>28}{'p99 ms':>9}{'CPU µs each':>13}")
    for (name, mode), samples in sorted(runs.items(), key=lambda item: (item[0][1], item[0][0])):
        rate = stats.estimate([run.rate for run in samples.values()])
        if rate is None:
            print(f"{name:<22}{mode:<26}{'no sample':>28}")
            continue
        p99 = stats.median([run.p99 for run in samples.values()])
        cpu = stats.median([run.cpu for run in samples.values()])
        print(f"{name:<22}{mode:<26}{_show(rate, 0):>28}{p99:>9.2f}{cpu:>13.1f}")
    print(f"\n{'throughput':<44}{'ratio':>20}{'target':>9}  verdict")
    missed = False
    for target in contestants.TARGETS:
        ratio = stats.paired_ratio(
            {number: run.rate for number, run in runs.get((target.server, target.mode), {}).items()},
            {number: run.rate for number, run in runs.get((target.against, target.mode), {}).items()},
        )
        if ratio is None:
            continue
        verdict = _verdict(ratio, target.factor)
        missed |= verdict == "missed"
        wanted = f"≥ {target.factor:g}" if target.factor else ""
        print(f"{target.server + ' / ' + target.against:<44}{_show(ratio, 2):>20}{wanted:>9}  {verdict}")
    if any(runs.get((bound.server, bound.mode)) for bound in contestants.BOUNDS):
        print(f"\n{'p99 at saturation':<44}{'ms':>20}{'target':>9}  verdict")
    for bound in contestants.BOUNDS:
        tail = stats.estimate([run.p99 for run in runs.get((bound.server, bound.mode), {}).values()])
        if tail is not None:
            verdict = _verdict(tail, bound.p99, at_least=False)
            missed |= verdict == "missed"
            print(f"{bound.server:<44}{_show(tail, 2):>20}{f'≤ {bound.p99:g}':>9}  {verdict}")
    if latencies:
        print(f"\n{'p99 at half the saturation of the counterpart':<44}{'ratio':>20}{'target':>9}  verdict")
    for pair, by_server in latencies.items():
        ratio = stats.paired_ratio(by_server[pair[0]], by_server[pair[1]])
        if ratio is not None:
            verdict = _verdict(ratio, 1.0, at_least=False)
            missed |= verdict == "missed"
            print(f"{pair[0] + ' / ' + pair[1]:<44}{_show(ratio, 2):>20}{'≤ 1':>9}  {verdict}")
    return missed


def _verdict(ratio: Estimate, bound: float, *, at_least: bool = True) -> str:
    """Return `met` or `missed` if the whole interval is on one side of the bound. One round gives no interval."""
    if not bound:
        return ""
    if ratio.low is None or ratio.high is None:
        return "one round: no verdict"
    if (ratio.low >= bound) if at_least else (ratio.high <= bound):
        return "met"
    if (ratio.high < bound) if at_least else (ratio.low > bound):
        return "missed"
    return "inconclusive"


def _show(figure: Estimate, digits: int) -> str:
    text = f"{figure.median:.{digits}f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _document(
    runs: dict[Key, dict[int, Saturation]],
    latencies: dict[tuple[str, str], dict[str, dict[int, float]]],
    arguments: argparse.Namespace,
) -> dict[str, object]:
    """Return all measurements, with a description of the host."""
    return {
        "schema": "servers/1",
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "saturation": [
            {"server": name, "mode": mode, "round": number, **asdict(run)}
            for (name, mode), samples in runs.items()
            for number, run in samples.items()
        ],
        "p99_at_half": [
            {"server": name, "pair": list(pair), "round": number, "p99": value}
            for pair, samples in latencies.items()
            for name, values in samples.items()
            for number, value in values.items()
        ],
    }


def _arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="samples of each server; a 95 %% interval needs six")
    parser.add_argument("--seconds", type=float, default=3, help="duration of each sample")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random order")
    parser.add_argument("--only", action="append", metavar="NAME", help="run only this server (repeatable)")
    parser.add_argument("--no-latency", action="store_true", help="do not measure p99 at half of saturation")
    parser.add_argument(
        "--venv",
        type=Path,
        default=cache / "sandbox-benchmarks" / "servers",
        help="environment for the counterparts",
    )
    parser.add_argument("-o", "--output", type=Path, help="write all samples as JSON")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
