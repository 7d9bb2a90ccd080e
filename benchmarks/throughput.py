"""Measure the reactor's throughput on one CPU: bare against a toy epoll loop, and at each level against `process`.

    python benchmarks/throughput.py [--rounds N] [--duration S] [--levels LIST] [--json]

The requests are for `/`. The server has one CPU and wrk another, with 64 connections kept open. All contenders run
interleaved in random order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox.lifecycle import lab, start
from sandbox.measure import host, load
from sandbox.network import lab as network
from sandbox.request import resolve
from sandbox.spec import DEFAULT_PORT
from sandbox.workloads import PYTHON

TOY = "toy epoll loop, bare"
REACTOR = "reactor, bare"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--duration", type=int, default=3)
    parser.add_argument("--levels", default="process,namespace,container")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root, cpus = common.root(), host.cpu_plan()
    if cpus.caveat is not None:
        print(f"warning: {cpus.caveat.text}", file=sys.stderr)
    toy = (common.repository() / "benchmarks/toy_epoll.py").read_text(encoding="utf-8")

    def bare(argv: Callable[[int], list[str]]) -> float:
        port = common.free_port()
        pid = common.spawn_chrooted(root, argv(port), cpus.server)
        try:
            common.wait_for_reply(port, "/")
            return rate(f"http://127.0.0.1:{port}/", list)
        finally:
            common.end(pid)

    def sandboxed(level: str) -> float:
        spec = resolve.make(common.WORKLOAD, level, resolve.Options(cpuset=str(cpus.server))).spec
        with start.running(spec) as running:
            return rate(f"http://{running.record.address}:{DEFAULT_PORT}/", network.generator_command)

    def rate(url: str, where: Callable[..., list[str]]) -> float:
        result = load.saturate(
            url, duration=options.duration, connections=load.CONNECTIONS, cpu=cpus.generator, command=where
        )
        return result.requests_per_s

    levels = [level for level in options.levels.split(",") if level]
    contenders: dict[str, Callable[[], float]] = {
        TOY: lambda: bare(lambda port: [*PYTHON, "-c", toy, str(port)]),
        REACTOR: lambda: bare(common.server_argv),
    }
    for level in levels:
        contenders[level] = lambda level=level: sandboxed(level)  # type: ignore[misc]
    with lab.use():
        series = common.interleave(contenders, options.rounds, options.seed)
    baselines = {REACTOR: TOY} | dict.fromkeys(levels, levels[0])
    common.report("throughput on one core", "requests/s", series, baselines, as_json=options.json)


if __name__ == "__main__":
    main()
