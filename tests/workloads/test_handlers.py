"""The handlers: the same answers from every model."""

from __future__ import annotations

import json

import pytest

from tests.workloads.server import Server


def test_cpu_gives_the_same_digest_with_and_without_the_lock(server: Server) -> None:
    # RFC 8018 has no test vectors for this input: two independent implementations have to agree.
    released = server.get("/cpu?rounds=500")
    assert released == server.get("/cpu?rounds=500&gil=1")
    assert released[0] == 200
    assert released != server.get("/cpu?rounds=501")


def test_cpu_against_hashlib(server: Server) -> None:
    import hashlib

    expected = hashlib.pbkdf2_hmac("sha256", b"password", b"workloads", 7).hex().encode() + b"\n"
    assert server.get("/cpu?rounds=7&gil=1") == (200, expected)


def test_io(server: Server) -> None:
    assert server.get("/io?ms=15") == (200, b"read for 15 ms\n")
    assert server.get("/io?ms=0") == (200, b"read for 0 ms\n")


def test_nonblocking_io(server: Server) -> None:
    if server.model in ("callback", "coroutine", "eventloop", "reactor"):
        assert server.get("/io?ms=15&nonblocking=1") == (200, b"read for 15 ms\n")
        assert server.get("/io?ms=0&nonblocking=1") == (200, b"read for 0 ms\n")
        assert server.get("/io?ms=-1&nonblocking=1")[0] == 400
    else:
        assert server.get("/io?ms=15&nonblocking=1") == (
            501,
            b"this model has no loop in which a read could wait without blocking\n",
        )
    assert server.get("/io?ms=15&nonblocking=0") == (200, b"read for 15 ms\n")
    assert server.get("/io?ms=15&nonblocking=2")[0] == 400


def test_counter(server: Server) -> None:
    start = int(server.get("/counter")[1])
    assert server.post("/counter", b"5") == (200, b"%d\n" % (start + 5))
    assert server.post("/counter", b"") == (200, b"%d\n" % (start + 6))
    assert server.post("/counter?unsafe=1", b"-6") == (200, b"%d\n" % start)
    assert server.get("/counter") == (200, b"%d\n" % start)
    assert server.post("/counter", b"many")[0] == 400


def test_a_handler_that_raises_is_a_500_of_its_own(server: Server) -> None:
    assert server.get("/crash?how=exception") == (500, b"the handler failed\n")
    assert server.get("/crash?how=gently")[0] == 400
    assert server.get("/") == (200, b"hello")


def test_stats(server: Server) -> None:
    first = json.loads(server.get("/stats")[1])
    second = json.loads(server.get("/stats")[1])
    assert first["model"] == server.model
    assert first["server"] == server.process.pid
    assert first["pid"] in first["processes"]
    assert first["threads"] >= 1
    assert first["connections"] >= 1
    assert second["requests"] > first["requests"]
    assert (first["coroutines"] is not None) == (server.model == "coroutine")


@pytest.mark.parametrize("target", ["/cpu?rounds=x", "/io?ms=-1", "/cpu?rounds=999999999999", "/counter/", "//"])
def test_bad_targets(server: Server, target: str) -> None:
    assert server.get(target)[0] in (400, 404)
