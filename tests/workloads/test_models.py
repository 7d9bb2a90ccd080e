"""The differences between the models: which requests wait for others, the number of threads, and the cost in memory."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from _thread import allocate_lock
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, cast

import pytest

from tests.workloads.server import MODELS, PATIENCE, Server, read_response
from workloads.chain import Chain
from workloads.http.request import Request
from workloads.servers.callback import FORMS

if TYPE_CHECKING:
    from workloads.rpc.callback_client import CallbackClient, OnError, OnReply
    from workloads.rpc.wire import Message, RpcError

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
LOOPS = ("callback", "coroutine", "eventloop", "reactor")
"""Models with a loop in which a read can wait."""
LATENCY = 50
"""Latency of each service in the tests of the chain, in milliseconds."""

# A chain takes three latencies. The machine may be loaded, so the bounds below are generous.
CHAIN_SECONDS = 3 * LATENCY / 1000


def stats(server: Server) -> dict[str, object]:
    document = json.loads(server.get("/stats")[1])
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("model", [model for model in MODELS if model != "sequential"])
def test_a_silent_client_holds_up_nobody(model: str) -> None:
    with Server(model) as server, server.connect() as silent:
        silent.sendall(b"GET / HT")
        begin = time.monotonic()
        assert server.get("/") == (200, b"hello")
        assert time.monotonic() - begin < 1


def test_sequential_waits_for_the_silent_client() -> None:
    """SEED-10."""
    with Server("sequential") as server, server.connect() as silent:
        silent.sendall(b"GET / HT")
        time.sleep(0.2)
        with pytest.raises(TimeoutError):
            server.get("/", timeout=1)
        silent.sendall(b"TP/1.1\r\nHost: t\r\n\r\n")
        assert read_response(silent) == (200, b"hello")


@pytest.mark.parametrize(
    ("model", "waits"),
    [("eventloop", True)] + [(model, False) for model in MODELS if model not in ("eventloop", "sequential")],
)
def test_who_waits_for_a_blocking_read(model: str, waits: bool) -> None:
    """SEED-8, SEED-12 and SEED-14: a handler that blocks delays the loop that runs it, and nothing else."""
    with Server(model) as server, server.connect() as client:
        server.get("/")
        client.sendall(b"GET /io?ms=800 HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.1)
        assert server.get("/")[0] == 200
        assert _has_answer(client) == waits
        assert read_response(client)[0] == 200


@pytest.mark.parametrize("model", LOOPS)
def test_nobody_waits_for_a_nonblocking_read(model: str) -> None:
    """SEED-14: the same read, done by the loop; on `eventloop` there is no other thread that could have done it."""
    with Server(model) as server, server.connect() as client:
        server.get("/")
        threads = server.threads()
        client.sendall(b"GET /io?ms=800&nonblocking=1 HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.1)
        assert server.get("/")[0] == 200
        assert not _has_answer(client)
        assert server.threads() == threads, "no worker thread was needed"
        assert read_response(client) == (200, b"read for 800 ms\n")


@pytest.mark.parametrize("model", LOOPS)
def test_nonblocking_reads_wait_side_by_side(model: str) -> None:
    """SEED-14: a hundred of them take the time of one, and leak no descriptor."""
    with Server(model) as server:
        server.get("/")
        before = os.listdir(f"/proc/{server.process.pid}/fd")
        clients = [server.connect() for _ in range(100)]
        begin = time.monotonic()
        for client in clients:
            client.sendall(b"GET /io?ms=300&nonblocking=1 HTTP/1.1\r\nHost: t\r\n\r\n")
        for client in clients:
            assert read_response(client)[0] == 200
            client.close()
        assert 0.3 <= time.monotonic() - begin < 100 * 0.3 / 8
        until = time.monotonic() + 5
        while os.listdir(f"/proc/{server.process.pid}/fd") != before:
            assert time.monotonic() < until
            time.sleep(0.01)


def _has_answer(client: socket.socket) -> bool:
    """Return whether a response has arrived, at this moment."""
    return bool(select.select([client], [], [], 0)[0])


@pytest.mark.parametrize(("model", "waits"), [("eventloop", True), ("reactor", False)])
def test_who_waits_for_a_computation(model: str, waits: bool) -> None:
    """SEED-12 and SEED-13."""
    with Server(model) as server, server.connect() as client:
        server.get("/cpu?rounds=1")
        begin = time.monotonic()
        server.get("/cpu?rounds=100000")
        rounds = int(100_000 * 1.5 / (time.monotonic() - begin))
        client.sendall(f"GET /cpu?rounds={rounds} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        time.sleep(0.1)
        assert server.get("/")[0] == 200
        assert _has_answer(client) == waits
        assert read_response(client)[0] == 200


@pytest.mark.parametrize("model", ["callback", "coroutine"])
def test_two_hundred_chains_take_the_time_of_one(model: str) -> None:
    """SEED-16, SEED-17, SEED-19."""
    with Server(model, "--rpc-latency", str(LATENCY)) as server:
        server.get("/chain?user=0")
        threads = server.threads()
        elapsed = _chains(server, 200)
        assert elapsed < 8 * CHAIN_SECONDS, f"{elapsed:.2f} s; one after the other it would be {200 * CHAIN_SECONDS} s"
        assert server.threads() == threads, "the kernel sees no more threads than before"


def test_a_suspended_coroutine_leaves_its_thread_to_others() -> None:
    """SEED-18: one worker thread, and a chain that waits in the middle of it."""
    with Server("coroutine", "--workers", "1", "--rpc-latency", "400") as server, server.connect() as client:
        client.sendall(b"GET /chain HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.1)
        assert server.get("/") == (200, b"hello")
        assert not _has_answer(client)
        document = stats(server)
        assert document["coroutines"] == 2, "the chain's and this one's"
        assert document["threads"] == 2, "the worker and the one that accepts"
        assert read_response(client)[0] == 200


class _Calls(list[tuple[str, "Message", "OnReply"]]):
    """A stand-in for the client of the services; it keeps the callbacks it is given."""

    def call(self, service: str, message: Message, on_reply: OnReply, _on_error: OnError) -> None:
        self.append((service, message, on_reply))


def _unexpected(error: RpcError) -> None:
    raise AssertionError(error)


def test_a_closure_carries_its_environment() -> None:
    """SEED-20: the language features that the callback server relies on, shown with its own functions."""
    request = Request(b"GET", b"/chain", b"user=7", {}, 1)
    for form, handle_chain in FORMS.items():  # a function is a value, so a table can hold it
        assert isinstance(handle_chain, FunctionType)
        calls, chain, finished = _Calls(), Chain(request), list[Chain]()
        handle_chain(cast("CallbackClient", calls), chain, finished.append, _unexpected)
        service, question, after_user_info = calls.pop()
        assert (service, question) == ("user", {"user": 7})
        assert isinstance(after_user_info, FunctionType)
        environment = dict(zip(after_user_info.__code__.co_freevars, after_user_info.__closure__ or (), strict=True))
        assert environment["chain"].cell_contents is chain, "two names for one datum"
        after_user_info({"user": 7, "name": "user-7", "group": 0})
        assert chain.contributions["user"]["name"] == "user-7", "what one name has changed, the other one sees"
        assert calls[0][0] == "query"
        nested = [constant.co_name for constant in handle_chain.__code__.co_consts if hasattr(constant, "co_name")]
        assert nested == (["after_user_info"] if form == "closure" else ["<lambda>"])


def test_two_hundred_chains_on_a_pool_are_bound_by_its_threads() -> None:
    """SEED-15: throughput is threads ÷ latency, however idle the processor is."""
    with Server("blocking", "--rpc-latency", str(LATENCY), "--workers", "16") as server:
        server.get("/chain?user=0")
        elapsed = _chains(server, 200)
        assert elapsed > 200 / 16 * CHAIN_SECONDS


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the limit of descriptors for both ends of the connections, here and in child processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 20_000:
        pytest.skip(f"the limit of open descriptors is {hard}, and the test needs 20,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _chains(server: Server, count: int) -> float:
    """Return the seconds that this many concurrent chains take; each answer is checked."""
    clients = [server.connect() for _ in range(count)]
    begin = time.monotonic()
    for number, client in enumerate(clients):
        client.sendall(f"GET /chain?user={number} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
    answers = []
    for client in clients:
        client.settimeout(30)
        answers.append(read_response(client))
    elapsed = time.monotonic() - begin
    for number, (status, body) in enumerate(answers):
        assert status == 200, body
        assert json.loads(body)["services"]["user"]["user"] == number
    for client in clients:
        client.close()
    return elapsed


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize("model", ["callback", "coroutine", "eventloop", "reactor"])
def test_ten_thousand_idle_connections(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """SEED-11 and SEED-19; the figure per connection is printed (`pytest -s`)."""
    count = 10_000
    with Server(model) as server:
        server.get("/")
        before, threads = server.memory(), server.threads()
        clients: list[socket.socket] = []
        try:
            for _ in range(count):
                client = socket.socket()
                clients.append(client)
                # Closed by a reset, as 10,000 ports in TIME_WAIT would disturb the next run.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.connect(("127.0.0.1", server.port))
                client.sendall(GET)
                client.settimeout(10)
                if not len(clients) % 500:  # otherwise a server that is slow for a moment drops some from its queue
                    for waiting in clients[-500:]:
                        read_response(waiting)
            each = (server.memory() - before) / count
            with capsys.disabled():
                print(f" {model}: {each:.0f} bytes per idle connection ", end="")
            assert each < 8192
            assert server.threads() == threads
            begin = time.monotonic()
            assert server.get("/") == (200, b"hello")
            assert time.monotonic() - begin < 1
            document = stats(server)
            assert document["connections"] == count + 1
            if model == "coroutine":
                assert document["coroutines"] == count + 1
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("segv", -signal.SIGSEGV)], ids=["exit", "segv"])
@pytest.mark.parametrize("model", ["fork", "thread", "reactor", "coroutine"])
def test_how_far_a_crash_reaches(model: str, how: str, code: int) -> None:
    """SEED-1 and SEED-7: a crash ends one of the processes, but all of the threads."""
    with Server(model) as server, server.connect() as other, server.connect() as victim:
        other.sendall(GET)
        read_response(other)
        victim.sendall(f"GET /crash?how={how} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        assert victim.recv(100) == b""
        if model == "fork":
            other.sendall(GET)
            assert read_response(other) == (200, b"hello")
            assert server.get("/") == (200, b"hello")
        else:
            assert server.wait() == code


def test_fork_makes_a_child_for_each_connection() -> None:
    with Server("fork") as server, server.connect() as client:
        pids = set()
        for _ in range(3):
            client.sendall(b"GET /stats HTTP/1.1\r\nHost: t\r\n\r\n")
            pids.add(json.loads(read_response(client)[1])["pid"])
        assert len(pids) == 1
        document = stats(server)
        assert document["pid"] not in pids
        assert document["server"] == server.process.pid
        assert len(document["processes"]) == 3, "the parent and two children"  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [model for model in MODELS if model != "sequential"])
def test_requests_of_open_connections_count(model: str) -> None:
    """The counts are of all processes of a server."""
    with Server(model) as server, server.connect() as first, server.connect() as second:
        for client in (first, second, first) * 2:
            client.sendall(GET)
            assert read_response(client) == (200, b"hello")
        assert stats(server)["requests"] == 6
        assert stats(server)["requests"] == 7


def test_requests_of_dead_children_count() -> None:
    with Server("fork") as server:
        with server.connect() as victim:
            victim.sendall(GET)
            read_response(victim)
            victim.sendall(b"GET /crash?how=segv HTTP/1.1\r\nHost: t\r\n\r\n")
            assert victim.recv(100) == b""
        for number in range(5):
            assert stats(server)["requests"] == 1 + number


def test_fork_per_request_closes_after_each() -> None:
    with Server("fork", "--per", "request") as server, server.connect() as client:
        client.sendall(GET * 2)
        data = b""
        while piece := client.recv(4096):
            data += piece
        assert data.count(b"hello") == 1
        assert b"Connection: close" in data


def test_fork_leaves_no_zombies() -> None:
    with Server("fork") as server:
        for _ in range(20):
            server.get("/")
        until = time.monotonic() + 5
        while len(stats(server)["processes"]) > 2:  # type: ignore[arg-type]
            assert time.monotonic() < until


def test_threads_come_and_go_with_connections() -> None:
    with Server("thread") as server:
        clients = [server.connect() for _ in range(20)]
        for client in clients:
            client.sendall(GET)
            read_response(client)
        assert server.threads() == 21
        for client in clients:
            client.close()
        until = time.monotonic() + 5
        while server.threads() > 1:
            assert time.monotonic() < until


@pytest.mark.parametrize("model", ["thread", "fork"])
def test_unsynchronised_additions_are_lost_and_synchronised_ones_are_not(model: str) -> None:
    """SEED-6: threads share state in their memory, processes in a shared mapping."""
    with Server(model) as server:

        def add(target: str, times: int) -> None:
            with server.connect() as client:
                request = f"POST {target} HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\n1".encode()
                client.sendall(request * times)
                data = b""
                while data.count(b"HTTP/1.1 200") < times:
                    data += client.recv(65536)

        def total(target: str) -> int:
            start = int(server.get("/counter")[1])
            threads = [threading.Thread(target=add, args=(target, 1000)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return int(server.get("/counter")[1]) - start

        assert total("/counter") == 6000
        lost = any(total("/counter?unsafe=1") < 6000 for _ in range(10))
        assert lost, "an addition without a lock was never lost in 60,000"


def test_two_locks_in_opposite_order_deadlock() -> None:
    """SEED-6, the second half, with the locks that the servers use."""

    def everybody_gets_both(orders: list[list[int]]) -> bool:
        locks = [allocate_lock(), allocate_lock()]
        meet = threading.Barrier(len(orders), timeout=PATIENCE)
        got_both = []

        def take(first: int, second: int) -> None:
            meet.wait()
            with locks[first]:
                time.sleep(0.1)  # by now the other one has its first lock, if it can get it
                if locks[second].acquire(timeout=0.5):
                    got_both.append(first)
                    locks[second].release()

        threads = [threading.Thread(target=take, args=order) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(got_both) == len(orders)

    assert everybody_gets_both([[0, 1], [0, 1]])
    assert not everybody_gets_both([[0, 1], [1, 0]])


def test_the_servers_import_nothing_of_the_manager() -> None:
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in (root / "workloads").rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    ]
    script = (
        "import sys, httptools\nbefore = set(sys.modules)\n"
        f"import {', '.join(names)}\n"
        "print([name for name in sys.modules if name not in before and name.split('.')[0] in "
        "('sandbox', 'asyncio', 'typing', 're', 'socket', 'threading', 'json', 'hashlib')])"
    )
    found = subprocess.run([sys.executable, "-S", "-c", _with_path(script)], cwd=root, capture_output=True, check=True)
    assert found.stdout == b"[]\n"


def _with_path(script: str) -> str:
    """Add this interpreter's packages to the path of a script: `-S` keeps site's imports out of its list."""
    import httptools

    return f"import sys; sys.path.append({str(Path(httptools.__file__).parents[1])!r})\n{script}"
