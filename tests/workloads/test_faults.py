"""Limits, faults and shutdown of a server on an open network."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workloads.server import MODELS, PATIENCE, Server, read_all, read_response, split, statuses

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
MULTIPLEXING = tuple(model for model in MODELS if model != "sequential")
"""The models that serve one client while another is silent."""


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("model", MODELS)
def test_slow_heads_bodies_and_idle_clients_are_ended(model: str) -> None:
    with Server(model, "--header-time", "0.3", "--body-time", "0.4", "--idle-time", "0.5") as server:
        assert statuses(_drip(server, b"GET / HTTP/1.1\r\nX: " + b"y" * 500)) == [408]
        body = b"POST /counter HTTP/1.1\r\nHost: t\r\nContent-Length: 500\r\n\r\n"
        assert statuses(_drip(server, body + b"1" * 400)) == [408]
        with server.connect() as client:
            client.sendall(GET)
            assert read_response(client) == (200, b"hello")
            assert client.recv(100) == b"", "an idle client is let go without a word"
        with server.connect() as client:
            assert client.recv(100) == b"", "so is one that never says anything"
        assert server.get("/") == (200, b"hello")


def _drip(server: Server, data: bytes) -> bytes:
    """Send a byte every 10 ms until the server answers (slowloris)."""
    with server.connect() as client:
        answer = b""
        for index in range(len(data)):
            try:
                client.sendall(data[index : index + 1])
                client.settimeout(0.01)
                answer += client.recv(65536)
                break
            except TimeoutError:
                continue
        else:
            raise AssertionError("the server took it all and said nothing")
        client.settimeout(PATIENCE)
        return answer + read_all(client)


@pytest.mark.parametrize("model", MULTIPLEXING)
def test_a_client_that_does_not_read_costs_bounded_memory(model: str) -> None:
    with Server(model, "--idle-time", "1") as server:
        server.get("/")
        before = server.memory()
        with server.connect(receive_buffer=4096) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                _send_without_end(client, GET * 2000)
            assert server.memory() - before < 8 * 1024 * 1024
            assert server.get("/") == (200, b"hello"), "others are served"
        with server.connect(receive_buffer=4096) as client:
            client.settimeout(0.5)
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000\r\n\r\n")
            with pytest.raises((TimeoutError, ConnectionError)):
                _send_without_end(client, b"x" * 65536)
            assert server.memory() - before < 8 * 1024 * 1024


def _send_without_end(client: socket.socket, data: bytes) -> None:
    """Send until the server reads no more, which must be long before the test's own limit."""
    sent = 0
    while sent < 64 * 1024 * 1024:
        sent += client.send(data)
    raise AssertionError(f"the server took {sent} bytes of a client that reads nothing")


@pytest.mark.parametrize("model", MULTIPLEXING)
def test_more_connections_than_allowed_get_503(model: str) -> None:
    with Server(model, "--max-connections", "3") as server:
        clients = [server.connect() for _ in range(3)]
        for client in clients:
            client.sendall(GET)
            assert read_response(client) == (200, b"hello")
        assert statuses(server.ask(b"")) == [503]
        clients.pop().close()
        wait_until(lambda: _status_of_get(server) == 200)
        for client in clients:
            client.sendall(GET)
            assert read_response(client) == (200, b"hello")
            client.close()


def _status_of_get(server: Server) -> int:
    try:
        return server.get("/")[0]
    except ConnectionError:  # the 503 was sent, and the connection was reset before our request arrived
        return 503


@pytest.mark.parametrize("model", [model for model in MULTIPLEXING if model != "fork"])
def test_out_of_descriptors_is_survived(model: str) -> None:
    with Server(model, descriptors=40) as server:
        clients = []
        for _ in range(60):
            client = server.connect()
            client.sendall(GET)
            clients.append(client)
        found = []
        for client in clients:
            try:
                found.append(split(client.recv(4096))[0])
            except ConnectionError:
                found.append(503)
        assert set(found) == {200, 503}
        for client in clients:
            client.close()
        wait_until(lambda: _status_of_get(server) == 200)
        assert server.process.poll() is None


@pytest.mark.parametrize("model", MODELS)
def test_no_descriptor_at_all_is_survived(model: str) -> None:
    """The limit equals the number of open descriptors, also for servers that close a client before the next accept."""
    with Server(model) as server:
        wait_until(lambda: server.get("/")[0] == 200)
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        _take_descriptors(server.process.pid)
        assert [_status_of_get(server) for _ in range(5)] == [503] * 5
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        assert server.get("/") == (200, b"hello")


def test_a_child_of_fork_without_descriptors_fails_alone() -> None:
    with Server("fork") as server, server.connect() as client:
        client.sendall(b"GET /stats HTTP/1.1\r\nHost: t\r\n\r\n")
        _take_descriptors(int(json.loads(read_response(client)[1])["pid"]))
        client.sendall(b"GET /io?ms=1 HTTP/1.1\r\nHost: t\r\n\r\n")
        assert read_response(client) == (500, b"the handler failed\n")
        client.sendall(GET)
        assert read_response(client) == (200, b"hello")
        assert server.get("/io?ms=1")[0] == 200


def _take_descriptors(pid: int) -> None:
    """Lower the limit of open descriptors, so that the next one fails with EMFILE (getrlimit(2), prlimit(2))."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = min(set(range(len(taken) + 1)) - taken)
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, hard))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("model", MODELS)
def test_termination_drains(model: str, number: signal.Signals) -> None:
    with Server(model) as server:
        idle = None
        if model != "sequential":  # there, a silent client blocks the busy one by design
            idle = server.connect()
            idle.sendall(GET)
            read_response(idle)
        busy = server.connect()
        busy.sendall(b"GET /io?ms=400 HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.15)
        server.process.send_signal(number)
        answer = read_all(busy)
        assert split(answer)[0] == 200, "a running request is finished"
        assert b"Connection: close" in answer
        if idle:
            assert idle.recv(10) == b"", "an idle connection is closed"
            idle.close()
        assert server.wait() == 0
        busy.close()
        with pytest.raises(ConnectionRefusedError):
            server.connect()


@pytest.mark.parametrize("model", ["coroutine", "fork", "reactor", "thread"])
def test_termination_cuts_off_after_the_grace_time(model: str) -> None:
    with Server(model, "--grace", "0.3") as server, server.connect() as client:
        client.sendall(b"GET /io?ms=5000 HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.15)
        begin = time.monotonic()
        assert server.terminate() == 1
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize("model", MODELS)
def test_clients_that_vanish_leave_nothing(model: str) -> None:
    with Server(model) as server:
        server.get("/")
        before = _descriptors(server)
        for data in (b"", b"GET / HT", GET, b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nabc"):
            client = server.connect()
            client.sendall(data)
            # Close with a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        wait_until(lambda: server.get("/")[0] == 200 and _descriptors(server) == before)


@pytest.mark.parametrize("model", MULTIPLEXING)
def test_a_client_that_breaks_off_while_served_costs_no_processor_time(model: str) -> None:
    """epoll reports a broken connection again and again, whatever events were requested."""
    with Server(model) as server:
        server.get("/io?ms=1")
        client = server.connect()
        client.sendall(b"GET /io?ms=700 HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.05)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        before = _processor_seconds(server)
        time.sleep(0.6)
        assert _processor_seconds(server) - before < 0.2
        assert server.get("/") == (200, b"hello")


def _processor_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


@pytest.mark.parametrize("model", MODELS)
def test_wrong_usage_is_one_line(model: str) -> None:
    with pytest.raises(AssertionError, match="did not start: workloads: unknown argument '--nonsense'"):
        Server(model, "--nonsense", "1")


def test_a_taken_port_is_one_line() -> None:
    with (
        Server("reactor") as server,
        pytest.raises(AssertionError, match=r"cannot listen on .*: Address already in use"),
    ):
        Server("thread", "--port", str(server.port))


def test_many_at_once() -> None:
    """All models at once under parallel clients: no answer is lost or mixed up."""
    with Server("reactor") as server:
        failures: list[object] = []

        def client(number: int) -> None:
            with server.connect() as wire:
                for turn in range(30):
                    body = b"%d/%d" % (number, turn)
                    wire.sendall(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    answer = read_response(wire)
                    if answer != (200, body):
                        failures.append((body, answer))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
