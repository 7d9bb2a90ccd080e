"""The costs of processes and threads, and the cores they use. Figures are printed (`pytest -s`); bounds are wide."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.workloads.server import PATIENCE, Server, read_response
from workloads.state import Counts

CONNECTIONS = 300
GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"

needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this host has one CPU")


@dataclass(frozen=True)
class Bill:
    """The resources that a server and its children have used: processor time in seconds, and context switches."""

    user: float
    system: float
    switches: int


def bill_of(model: str) -> Bill:
    """Serve so many clients, one request each, then end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Server(model) as server:
        for _ in range(CONNECTIONS):
            assert server.get("/") == (200, b"hello")
        assert server.terminate() == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Bill(
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw,
    )


def test_processes_cost_more_than_threads(capsys: pytest.CaptureFixture[str]) -> None:
    """SEED-3 and SEED-4: the same work, with a process and with a thread for each connection."""
    fork, thread = bill_of("fork"), bill_of("thread")
    with capsys.disabled():
        print(f" {CONNECTIONS} connections: fork {fork}, thread {thread} ", end="")
    assert fork.user + fork.system > 2 * (thread.user + thread.system)
    assert fork.system > 2 * thread.system
    assert fork.switches > thread.switches


def test_what_is_shared_costs_more_between_processes() -> None:
    """SEED-5: threads share a variable under a lock; processes share a mapping under a lock of the kernel."""
    in_memory, between = Counts.of_threads().counter, Counts.of_processes(1)[0].counter
    assert _seconds_each(lambda: between.add(1)) > 2 * _seconds_each(lambda: in_memory.add(1))
    assert in_memory.get() == between.get()


def _seconds_each(action: Callable[[], object], times: int = 20_000) -> float:
    """Return the processor time of this thread for one call."""
    best = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        for _ in range(times):
            action()
        best = min(best, (time.thread_time() - begin) / times)
    return best


def test_a_connection_costs_more_with_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """SEED-9: a cost that is acceptable with a few users is not with thousands."""
    each = {}
    for model in ("thread", "eventloop"):
        with Server(model) as server:
            server.get("/")
            before = server.memory()
            clients = [server.connect() for _ in range(CONNECTIONS)]
            for client in clients:
                client.sendall(GET)
                assert read_response(client) == (200, b"hello")
            each[model] = (server.memory() - before) / CONNECTIONS
            assert server.threads() == (1 + CONNECTIONS if model == "thread" else 1)
            for client in clients:
                client.close()
    with capsys.disabled():
        print(f" bytes per connection: {each} ", end="")
    assert each["thread"] > 3 * each["eventloop"]


@needs_two_cores
@pytest.mark.parametrize("model", ["fork", "reactor", "thread"])
def test_computations_use_several_cores(model: str) -> None:
    """SEED-2 and SEED-13, if the handler releases the interpreter's lock."""
    with Server(model) as server, _under_way(server, "/cpu?rounds=20000000"):
        _wait_for_two_cores(server)


@needs_two_cores
@pytest.mark.parametrize(("model", "several"), [("fork", True), ("reactor", False), ("thread", False)])
def test_the_interpreters_lock_binds_threads_and_not_processes(model: str, several: bool) -> None:
    """SEED-2 and SEED-13, if the handler holds the lock: threads use one core between them."""
    with Server(model) as server:
        server.get("/cpu?rounds=1&gil=1")
        with _under_way(server, "/cpu?rounds=20000000&gil=1"):
            if several:
                _wait_for_two_cores(server)
            else:
                used, begin = _processor_seconds(server), time.monotonic()
                time.sleep(1)
                used = _processor_seconds(server) - used
                assert used < 1.25 * (time.monotonic() - begin)


@contextmanager
def _under_way(server: Server, target: str) -> Iterator[None]:
    """Keep two requests under way during a block, and abandon them at its end."""
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        yield


def _wait_for_two_cores(server: Server) -> None:
    until = time.monotonic() + PATIENCE
    while len(_busy_cores(server)) < 2:
        assert time.monotonic() < until, "two computations never ran on two cores"
        time.sleep(0.005)


def _busy_cores(server: Server) -> set[int]:
    """Return the processors of the server's running threads (proc(5), stat, fields 3 and 39)."""
    return {int(fields[36]) for fields in _threads(server.process.pid) if fields[0] == "R"}


def _threads(leader: int) -> Iterator[list[str]]:
    """Return the fields, from the third on, of each thread of each process in the server's group."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) != leader:
                continue
            for stat in entry.glob("task/*/stat"):
                yield stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended


def _processor_seconds(server: Server) -> float:
    return sum(int(fields[11]) + int(fields[12]) for fields in _threads(server.process.pid)) / os.sysconf("SC_CLK_TCK")
