"""Measure this checkout against another one, such as the last release: starts, throughput and shell commands.

    python benchmarks/against.py DIRECTORY [--rounds N] [--levels LIST] [--only WORD] [--json]

Both are used through their public interface, `import sandbox` and `.venv/bin/sandbox`, so that they may differ inside.
All contenders run interleaved in random order. Each one of this checkout is compared with the other's; `exec` in a
container is also compared with docker's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox import isolation
from sandbox.measure import host, load
from sandbox.network import lab
from sandbox.spec import DEFAULT_PORT

NEW, OLD = "new", "old"
DOCKER_EXEC = "docker exec"
_names = (f"against-{os.getpid()}-{number}" for number in itertools.count())
_WORKER = """
import json, sys, sandbox
up = None
for line in sys.stdin:
    asked = json.loads(line)
    try:
        if asked.pop("do") == "up":
            up = sandbox.run("reactor", **asked)
            answer = {"seconds": sum(s for name, s in up.startup.items() if name != "total"), "address": up.address}
        else:
            up.remove(force=True)
            answer = {}
    except sandbox.SandboxError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Checkout:
    """A checkout, with a worker in its own environment that starts sandboxes on request."""

    def __init__(self, directory: Path) -> None:
        self.command = str(directory / ".venv/bin/sandbox")
        argv = [str(directory / ".venv/bin/python"), "-c", _WORKER]
        self._worker = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **what: Any) -> dict[str, Any]:
        """Send a request to the worker and return its answer.

        Raises:
            OSError: the worker failed; the error has its message.
        """
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(what) + "\n")
        answer: dict[str, Any] = json.loads(self._worker.stdout.readline() or '{"error": "the worker ended"}')
        if "error" in answer:
            raise OSError(answer["error"])
        return answer

    def start(self, level: str) -> float:
        """Return the seconds from the call to the first correct reply."""
        seconds: float = self.ask(do="up", isolation=level)["seconds"]
        self.ask(do="down")
        return seconds

    def serve(self, level: str, cpus: host.CpuPlan, duration: int) -> float:
        """Return the requests per second on one CPU."""
        address = self.ask(do="up", isolation=level, cpuset=str(cpus.server))["address"]
        try:
            return load.saturate(
                f"http://{address}:{DEFAULT_PORT}/",
                duration=duration,
                connections=load.CONNECTIONS,
                cpu=cpus.generator,
                command=lab.generator_command,
            ).requests_per_s
        finally:
            self.ask(do="down")

    def close(self) -> None:
        """End the worker."""
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait(60)


def run(argv: list[str]) -> float:
    """Run a command; return its wall time in seconds.

    Raises:
        OSError: it failed; the error has its output.
    """
    begin = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=120)
    if done.returncode:
        raise OSError(f"{argv[0]} exited with {done.returncode}: {done.stderr.strip()[-200:]}")
    return time.monotonic() - begin


@contextmanager
def kept(command: str, level: str) -> Iterator[str]:
    """Keep a sandbox for commands for the time of a block; yields its name."""
    name = next(_names)
    run([command, "run", "-d", "--name", name, "--isolation", level, "reactor"])
    try:
        yield name
    finally:
        run([command, "rm", "-f", name])


def detached(command: str, level: str) -> float:
    """Return the wall time of `sandbox run -d` at a level."""
    name = next(_names)
    seconds = run([command, "run", "-d", "--name", name, "--isolation", level, "reactor"])
    run([command, "rm", "-f", name])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="DIRECTORY")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--levels", default=",".join(isolation.LEVELS))
    parser.add_argument("--duration", type=int, default=2, help="seconds of each load")
    parser.add_argument("--only", default="", metavar="WORD", help="run only contenders whose name contains WORD")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cpus = host.cpu_plan()
    contenders: dict[str, Callable[[], float]] = {}
    loads: dict[str, Callable[[], float]] = {}
    baselines: dict[str, str] = {}
    with ExitStack() as stack:
        sides = {NEW: Checkout(common.repository()), OLD: Checkout(options.other.resolve())}
        for side in sides.values():
            stack.callback(side.close)
        for level in options.levels.split(","):
            for name, side in sides.items():
                contenders[f"start {level}, {name}"] = lambda side=side, level=level: side.start(level)  # type: ignore[misc]
                loads[f"load {level}, {name}"] = lambda side=side, level=level: side.serve(  # type: ignore[misc]
                    level, cpus, options.duration
                )
                label = f"run -d {level}, {name}"
                contenders[label] = lambda side=side, level=level: detached(side.command, level)  # type: ignore[misc]
                if f"exec {level}".find(options.only) >= 0:
                    inside = stack.enter_context(kept(side.command, level))
                    argv = [side.command, "exec", inside, "true"]
                    contenders[f"exec {level}, {name}"] = lambda argv=argv: run(argv)  # type: ignore[misc]
                    if level == "container" and name == NEW:
                        ident = json.loads(subprocess.check_output([side.command, "inspect", inside]))[0]["id"]
                        peer = ["docker", "exec", f"sbx-{ident}", "true"]
                        contenders[f"{DOCKER_EXEC}, {level}"] = lambda peer=peer: run(peer)  # type: ignore[misc]
            for what in ("start", "load", "run -d", "exec"):
                baselines[f"{what} {level}, {NEW}"] = f"{what} {level}, {OLD}"
        chosen = {name: one for name, one in contenders.items() if options.only in name}
        series = common.interleave(chosen, options.rounds, options.seed, pause=0.1)
        heavy = {name: one for name, one in loads.items() if options.only in name}
        throughput = common.interleave(heavy, options.rounds, options.seed)
    common.report_ratios("against docker", series, [(f"exec container, {NEW}", f"{DOCKER_EXEC}, container", 2.0)])
    common.report("times", "ms", series, baselines, as_json=options.json, scale=1000)
    common.report("throughput on one core", "requests/s", throughput, baselines, as_json=options.json)


if __name__ == "__main__":
    main()
