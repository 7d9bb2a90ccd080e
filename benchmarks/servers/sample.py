"""Take one sample: start a fresh server on one CPU and the load generator on another, and parse the results."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers.contestants import PER_REQUEST, ROOT, Contestant

CONNECTIONS = 64
SERVER_CPU = "0"
GENERATOR_CPU = "1"
START_SECONDS = 20.0
WARM_UP_SECONDS = 1

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class SampleError(Exception):
    """The sample is not valid; the message says why."""


@dataclass(frozen=True, slots=True)
class Saturation:
    """The results of a server under full load.

    Attributes:
        rate: replies per second.
        p99: latency in milliseconds.
        cpu: CPU time of the server and its children per reply, in microseconds.
    """

    rate: float
    p99: float
    cpu: float


def saturate(contestant: Contestant, mode: str, python: str, seconds: float) -> Saturation:
    """Run wrk against a fresh server.

    Raises:
        SampleError: the server did not start, or gave a wrong reply or an error, or wrk failed.
    """
    with _server(contestant, python) as (process, port):
        extra = ["-H", "Connection: close"] if mode == PER_REQUEST else []
        wrk = ["taskset", "-c", GENERATOR_CPU, _tool("wrk"), "-t1", f"-c{CONNECTIONS}", "--latency", *extra]
        url = f"http://127.0.0.1:{port}/"
        _run([*wrk, f"-d{WARM_UP_SECONDS}s", url], 30)
        before = _cpu_seconds(process.pid)
        output = _run([*wrk, f"-d{seconds:.0f}s", url], seconds + 30)
        used = _cpu_seconds(process.pid) - before
    requests = re.search(r"(\d+) requests in", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", output)
    if not requests or not rate or not p99 or int(requests[1]) == 0:
        raise SampleError(f"wrk printed no figures: {output.strip()[-200:]}")
    if "Non-2xx" in output:
        raise SampleError("there were replies with a status other than 200")
    return Saturation(float(rate[1]), float(p99[1]) * _UNITS[p99[2]], used / int(requests[1]) * 1e6)


def p99_at(contestant: Contestant, python: str, rate: float, seconds: float) -> float:
    """Measure the 99th percentile of the latency, in milliseconds, at a constant rate of replies per second.

    h2load gives each client its share of the rate and logs each reply (h2load(1), --log-file). Its clock starts when a
    request is submitted, so the wait for a busy connection is not counted; at half of saturation that is little.

    Raises:
        SampleError: as for `saturate`.
    """
    with _server(contestant, python) as (_, port), tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        share = max(1, round(rate / CONNECTIONS))
        command = ["taskset", "-c", GENERATOR_CPU, _tool("h2load"), "--h1", f"-c{CONNECTIONS}", f"--rps={share}"]
        _run([*command, f"-D{seconds:.0f}", f"--log-file={log}", f"http://127.0.0.1:{port}/"], seconds + 30)
        latencies = []
        for line in log.read_text(encoding="ascii").splitlines():
            _, status, microseconds = line.split("\t")[:3]
            if status != "200":
                raise SampleError(f"there was a reply with status {status}")
            latencies.append(int(microseconds))
    if len(latencies) < 0.8 * share * CONNECTIONS * seconds:
        raise SampleError(f"only {len(latencies)} replies: the server does not keep up with {rate:.0f}/s")
    latencies.sort()
    return latencies[int(len(latencies) * 0.99)] / 1000


@contextmanager
def _server(contestant: Contestant, python: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = _free_port()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CPU, *contestant.command(python, port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            try:
                _wait_for_hello(port, process)
            except SampleError as error:
                errors.seek(0)
                raise SampleError(f"{error}: {errors.read().decode(errors='replace')[-300:]}") from None
            yield process, port
        finally:
            # The server leads a process group of its own, so this ends it and its workers only.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_hello(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SampleError(f"the server exited with {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(request)
                answer = b""
                while piece := client.recv(4096):
                    answer += piece
        except OSError:
            time.sleep(0.02)
            continue
        if not answer.startswith(b"HTTP/1.1 200") or not answer.endswith(b"hello"):
            raise SampleError(f"the server gave a wrong reply: {answer[:100]!r}")
        return
    raise SampleError("the server did not reply in time")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cpu_seconds(group: int) -> float:
    """Return the CPU time of a process group, including its dead children (proc(5), stat, fields 14 to 17)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[2]) == group:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _run(command: list[str], timeout: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise SampleError(f"{command[3]} did not end in time") from None
    if done.returncode:
        raise SampleError(f"{command[3]} failed: {done.stderr.strip()[-200:]}")
    return done.stdout


def _tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise SampleError(f"{name} is not installed")
    return found
