"""HTTP/1.1 conformance: the same assertions for every server, on real sockets."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import h11
import pytest

from tests.workloads.server import SYSTEM_INTERPRETER, Server, read_all, read_response, split, statuses
from tests.workloads.shapes import BAD_HEADS, GOOD_HEADS, PIPELINE, PIPELINE_BODIES


def test_short_answers(server: Server) -> None:
    assert server.get("/") == (200, b"hello")
    assert server.get("/healthz")[0] == 200


def test_keep_alive(server: Server) -> None:
    with server.connect() as client:
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            assert read_response(client) == (200, b"hello")


def test_http_1_0_closes_unless_asked_not_to(server: Server) -> None:
    assert b"Connection: close" in server.ask(b"GET / HTTP/1.0\r\n\r\n")
    with server.connect() as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert read_response(client) == (200, b"hello")


def test_connection_close(server: Server) -> None:
    answer = server.ask(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert split(answer) == (200, b"hello")
    assert b"Connection: close" in answer


def test_date_is_an_imf_fixdate(server: Server) -> None:
    answer = server.ask(b"GET / HTTP/1.0\r\n\r\n")
    assert re.search(
        rb"\r\nDate: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n", answer
    )


def test_pipelined_answers_come_in_order(server: Server) -> None:
    answer = server.ask(PIPELINE)
    assert statuses(answer) == [200, 200, 404, 200, 200, 200]
    positions = [answer.index(body) for body in PIPELINE_BODIES]
    assert positions == sorted(positions)


def test_head_is_a_get_without_the_body(server: Server) -> None:
    get = server.ask(b"GET / HTTP/1.0\r\n\r\n")
    head = server.ask(b"HEAD / HTTP/1.0\r\n\r\n")
    without_date = re.compile(rb"Date: [^\r]*\r\n")
    assert without_date.sub(b"", head) == without_date.sub(b"", get).removesuffix(b"hello")


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_sized_echo(server: Server, size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    with server.connect() as client:
        sender = threading.Thread(
            target=client.sendall,
            args=(b"POST /echo HTTP/1.0\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size + body,),
        )
        sender.start()
        answer = read_all(client)
        sender.join()
    assert split(answer) == (200, body)


def test_chunked_echo_by_h11(server: Server) -> None:
    pieces = [b"a" * 10, b"b" * 70_000, b"c"]
    client = h11.Connection(h11.CLIENT)
    with server.connect() as wire:
        request = h11.Request(method="POST", target="/echo", headers=[("Host", "t"), ("Transfer-Encoding", "chunked")])
        wire.sendall(client.send(request) or b"")
        for piece in pieces:
            wire.sendall(client.send(h11.Data(data=piece)) or b"")
        wire.sendall(client.send(h11.EndOfMessage(headers=[("X-Trailer", "yes")])) or b"")
        body = b""
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(wire.recv(65536))
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                assert isinstance(event, h11.Response)
                assert event.status_code == 200
        assert body == b"".join(pieces)
        assert client.our_state is h11.DONE
        wire.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        assert read_response(wire) == (200, b"hello")


def test_expect_100_continue(server: Server) -> None:
    with server.connect() as client:
        client.sendall(
            b"POST /counter HTTP/1.1\r\nHost: t\r\nConnection: close\r\n"
            b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        )
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"0")
        assert split(read_all(client))[0] == 200


def test_expect_is_refused_before_the_body(server: Server) -> None:
    head = b"Host: t\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    assert statuses(server.ask(b"POST /counter HTTP/1.1\r\n" + head)) == [413]
    assert statuses(server.ask(b"POST /nowhere HTTP/1.1\r\n" + head)) == [404]
    assert statuses(server.ask(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nExpect: tea\r\n\r\n")) == [417]


def test_405_says_what_is_allowed(server: Server) -> None:
    answer = server.ask(b"DELETE / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [405]
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(("name", "head", "status"), BAD_HEADS, ids=[shape[0] for shape in BAD_HEADS])
def test_what_is_refused(server: Server, name: str, head: bytes, status: int) -> None:
    answer = server.ask(head)
    assert statuses(answer) == [status], name


@pytest.mark.parametrize(("name", "head"), GOOD_HEADS, ids=[shape[0] for shape in GOOD_HEADS])
def test_what_is_taken(server: Server, name: str, head: bytes) -> None:
    assert statuses(server.ask(head)) == [200], name


def test_smuggled_request_is_not_answered(server: Server) -> None:
    answer = server.ask(
        b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: t\r\n\r\n"
    )
    assert statuses(answer) == [400]
    assert b"ok" not in answer.split(b"\r\n\r\n", 1)[1]


def test_half_closed_client_gets_its_answers(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"GET /io?ms=30 HTTP/1.1\r\nHost: t\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n")
        client.shutdown(1)
        assert statuses(read_all(client)) == [200, 200]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(server: Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.port}"
    data = tmp_path / "data"
    data.write_bytes(bytes(range(256)) * 8192)  # 2 MiB: above 1 MiB, curl sends Expect on its own

    def curl(*arguments: str) -> bytes:
        return subprocess.run(["curl", "-sS", "--max-time", "10", *arguments], check=True, capture_output=True).stdout

    assert curl(f"{url}/", f"{url}/healthz", f"{url}/") == b"hellook\nhello"
    assert b"Content-Length: 5" in curl("-I", f"{url}/")
    assert curl("--data-binary", f"@{data}", f"{url}/echo") == data.read_bytes()
    assert curl("-T", str(data), "-X", "POST", "-H", "Transfer-Encoding: chunked", f"{url}/echo") == data.read_bytes()
    assert curl("-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", f"{url}/counter") == b"411"


@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/httptools").is_dir(), reason="Debian's python3-httptools is not installed"
)
def test_same_verdicts_with_the_root_filesystems_parser() -> None:
    """Debian's httptools has Node's old parser instead of llhttp; the answers must not differ."""
    with Server("eventloop", command=SYSTEM_INTERPRETER) as server:
        found = {name: statuses(server.ask(head)) for name, head, _ in BAD_HEADS}
        assert found == {name: [status] for name, _, status in BAD_HEADS}
        assert {name: statuses(server.ask(head)) for name, head in GOOD_HEADS} == {
            name: [200] for name, _ in GOOD_HEADS
        }
        assert statuses(server.ask(PIPELINE)) == [200, 200, 404, 200, 200, 200]
