"""Functions shared by the benchmarks: interleaved rounds, and tables of medians with ratios paired by round."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sandbox import images, workloads
from sandbox.errors import SandboxError
from sandbox.measure import stats
from sandbox.results import Estimate

WORKLOAD = "reactor"
WARM_UP = 0
POLL = 0.0005
"""Seconds between attempts to get a first reply from a server that a benchmark has started itself."""
TIMEOUT = 30.0


@dataclass(slots=True)
class Series:
    """The measurements of one contender.

    Attributes:
        values: values by round, without the warm-up.
        failures: error messages, one line each.
    """

    name: str
    values: dict[int, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seed: int, *, pause: float = 0.0
) -> list[Series]:
    """Run every contender once per round, in a random order, after a warm-up round.

    A contender that fails in the warm-up is not run again.

    Args:
        contenders: functions that run a contender and return its value, by name.
        rounds: number of rounds that count.
        seed: seed of the order.
        pause: seconds before each run, for the kernel to release what the previous one has left.
    """
    series = {name: Series(name) for name in contenders}
    order = random.Random(seed)  # noqa: S311 - the same seed gives the same order
    for number in range(rounds + 1):
        names = [name for name in contenders if not (number and not series[name].values and series[name].failures)]
        order.shuffle(names)
        for position, name in enumerate(names):
            if sys.stderr.isatty():
                print(f"\r\x1b[Kround {number}/{rounds}, {position + 1}/{len(names)}: {name}", end="", file=sys.stderr)
            time.sleep(pause)
            try:
                value = contenders[name]()
            except (SandboxError, OSError) as error:
                series[name].failures.append(str(error))
                continue
            if number != WARM_UP:
                series[name].values[number] = value
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return list(series.values())


def report(
    title: str, unit: str, series: Sequence[Series], baselines: Mapping[str, str], *, as_json: bool, scale: float = 1.0
) -> None:
    """Print a table, or JSON with all values.

    Args:
        title: title of the benchmark.
        unit: unit of the values multiplied by `scale`.
        series: the measurements.
        baselines: the contender that each one's ratio refers to.
        as_json: whether to print JSON.
        scale: factor from the values to the printed ones.
    """
    known = {one.name: one for one in series}
    rows = []
    for one in series:
        middle = stats.estimate([value * scale for value in one.values.values()])
        baseline = baselines.get(one.name, "")
        ratio = stats.paired_ratio(one.values, known[baseline].values) if baseline in known else None
        rows.append((one, middle, baseline, ratio))
    if as_json:
        document = [
            {
                "name": one.name,
                "unit": unit,
                "median": asdict(middle) if middle else None,
                "baseline": baseline or None,
                "ratio": asdict(ratio) if ratio else None,
                "values": [value * scale for value in one.values.values()],
                "failures": one.failures,
            }
            for one, middle, baseline, ratio in rows
        ]
        print(json.dumps({"benchmark": title, "results": document}, indent=1))
        return
    print(f"{title} ({unit}; median, 95 % interval over rounds; ratios paired by round)")
    for one, middle, baseline, ratio in rows:
        line = f"  {one.name:<34} {_figure(middle, 1):>30}"
        if ratio is not None and baseline != one.name:
            line += f"   {_figure(ratio, 3)} × {baseline}"
        if one.failures:
            line += f"   {len(one.failures)} failed: {one.failures[0]}"
        print(line)


def _figure(figure: Estimate | None, places: int) -> str:
    if figure is None:
        return "–"
    text = f"{figure.median:,.{places}f}"
    if figure.low is not None and figure.high is not None:
        text += f" [{figure.low:,.{places}f}, {figure.high:,.{places}f}]"
    return text


def root() -> str:
    """Return the root filesystem's directory; build it if it is missing."""
    path = images.ensure(images.Form.ROOTFS, lambda line: print(line, file=sys.stderr)).path
    if path is None:
        raise SandboxError("the root filesystem has no directory")
    return str(path)


def server_argv(port: int) -> list[str]:
    """Return the workload's command inside the root filesystem, on a loopback address."""
    return list(workloads.argv(WORKLOAD, host="127.0.0.1", port=port))


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def spawn_chrooted(root_directory: str, argv: Sequence[str], cpu: int | None = None) -> int:
    """Run a command below a root directory by plain fork and exec; return the child's pid."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        os.chroot(root_directory)
        os.chdir("/")
        os.execve(argv[0], list(argv), {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})  # noqa: S606
    finally:
        os._exit(127)


def wait_for_reply(port: int, path: str = "/healthz", address: str = "127.0.0.1") -> None:
    """Poll until a GET is answered with 200.

    Raises:
        TimeoutError: it was not within TIMEOUT.
    """
    deadline = time.monotonic() + TIMEOUT
    request = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
    while time.monotonic() < deadline:
        with suppress(ConnectionError), socket.create_connection((address, port), timeout=1) as client:
            client.sendall(request)
            if client.recv(4096).startswith(b"HTTP/1.1 200 "):
                return
        time.sleep(POLL)
    raise TimeoutError(f"no reply on port {port}")


def end(pid: int) -> None:
    """Kill a child and reap it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def repository() -> Path:
    """Return the directory of the checkout."""
    return Path(__file__).resolve().parents[1]


def report_ratios(title: str, series: Sequence[Series], targets: Sequence[tuple[str, str, float]]) -> None:
    """Print ratios paired by round, each with its upper bound.

    Args:
        title: title of the table.
        series: the measurements; pairs with a missing one are left out.
        targets: (contender, baseline, upper bound of the ratio).
    """
    by_name = {one.name: one for one in series}
    print(f"\n{title}\n")
    for name, against, most in targets:
        if name not in by_name or against not in by_name:
            continue
        ratio = stats.paired_ratio(by_name[name].values, by_name[against].values)
        if ratio is None:
            continue
        verdict = "no interval"
        if ratio.low is not None and ratio.high is not None:
            verdict = "met" if ratio.high <= most else "missed" if ratio.low > most else "inconclusive"
        print(f"{name + ' / ' + against:<64}{_interval(ratio):>22}   <= {most:<5g} {verdict}")


def _interval(figure: Estimate) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.median:.2f}"
    return f"{figure.median:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
