"""The handlers: functions from a request to its response, the same in every model."""

from __future__ import annotations

import os
from _socket import SO_RCVTIMEO, SOL_SOCKET, socketpair

from workloads.chain import Chain, rpc_failure
from workloads.http.request import CHAIN, CPU, IO, NONBLOCKING_IO, SHORT, STREAM, HttpError, Route
from workloads.http.response import JSON, Response
from workloads.net import timeval
from workloads.rpc.wire import RpcError
from workloads.signals import SIGSEGV, raise_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.application import Application
    from workloads.http.request import Request, Routes
    from workloads.rpc.wire import Message

_HELLO = Response(b"hello")
_HEALTHY = Response(b"ok\n")
_SALT = b"workloads"


def hello(_request: Request) -> Response:
    """Handle `/`: a short constant body."""
    return _HELLO


def healthz(_request: Request) -> Response:
    """Handle `/healthz`: report that the server is running."""
    return _HEALTHY


def cpu(request: Request) -> Response:
    """Handle `/cpu?rounds=N`: compute N rounds of PBKDF2 (RFC 8018).

    By default it is computed in C, without the global interpreter lock; with `gil=1` it is computed in Python, which
    holds the lock. The digest is the same.
    """
    from hashlib import pbkdf2_hmac  # imported here because loading OpenSSL takes 4 ms

    rounds = request.integer(b"rounds", 1000, 1, 100_000_000)
    if request.integer(b"gil", 0, 0, 1):
        digest = _pbkdf2(b"password", _SALT, rounds)
    else:
        digest = pbkdf2_hmac("sha256", b"password", _SALT, rounds)
    return Response(digest.hex().encode("ascii") + b"\n")


def _pbkdf2(password: bytes, salt: bytes, rounds: int) -> bytes:
    """Compute the first block of PBKDF2-HMAC-SHA256 in Python: hashlib keeps the lock for inputs below 2 KiB."""
    from hashlib import sha256

    key = password.ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in key))
    outer = sha256(bytes(byte ^ 0x5C for byte in key))

    def hmac(message: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()

    last = hmac(salt + b"\0\0\0\1")
    total = int.from_bytes(last, "big")
    for _ in range(rounds - 1):
        last = hmac(last)
        total ^= int.from_bytes(last, "big")
    return total.to_bytes(32, "big")


def io(request: Request) -> Response:
    """Handle `/io?ms=N`: a read that blocks its thread for N milliseconds."""
    milliseconds = io_time(request)
    blocking_read(milliseconds)
    return io_response(milliseconds)


def io_time(request: Request) -> int:
    """Return the duration of the read of `/io`, in milliseconds.

    Raises:
        HttpError: 400, `ms` is malformed or too large.
    """
    return request.integer(b"ms", 10, 0, 600_000)


def io_response(milliseconds: int) -> Response:
    """Return the response to `/io`, which is the same for blocking and non-blocking reads."""
    return Response(b"read for %d ms\n" % milliseconds)


def blocking_read(milliseconds: int) -> None:
    """Block in recvfrom(2) on a socket to which nothing is written, until its receive timeout (socket(7))."""
    if not milliseconds:
        return  # a timeout of zero would mean no timeout
    ours, theirs = socketpair()
    try:
        ours.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(milliseconds / 1000))
        ours.recv(1)
    except BlockingIOError:
        return
    finally:
        ours.close()
        theirs.close()


def io_without_loop(_request: Request) -> Response:
    """Refuse `/io?ms=N&nonblocking=1` in a model without an event loop; see nonblocking.py for the others."""
    raise HttpError(501, "this model has no loop in which a read could wait without blocking")


def counter(request: Request, app: Application) -> Response:
    """Handle `/counter`: GET reads it; POST adds the number in the body (default 1), without a lock if `unsafe=1`."""
    cell = app.counts.counter
    if request.method != b"POST":
        return Response(b"%d\n" % cell.get())
    text = request.body.strip() or b"1"
    if not text.removeprefix(b"-").isdigit() or len(text) > 12:
        raise HttpError(400, "the body must be a whole number")
    unsafe = request.integer(b"unsafe", 0, 0, 1)
    total = cell.add_unsafely(int(text)) if unsafe else cell.add(int(text))
    return Response(b"%d\n" % total)


def crash(request: Request) -> Response:
    """Handle `/crash?how=exception|exit|segv`: fail, to show what else fails with it in a model."""
    how = request.arguments().get(b"how", b"exception")
    if how == b"exit":
        os._exit(3)
    if how == b"segv":
        raise_signal(SIGSEGV)
    if how != b"exception":
        raise HttpError(400, "how must be exception, exit or segv")
    raise RuntimeError("asked to fail")


def chain(request: Request, app: Application) -> Response:
    """Handle `/chain?user=ID`: call three services one after the other; the calling thread waits for each."""
    try:
        return chain_blocking(Chain(request), app.blocking_client().call).response()
    except RpcError as error:
        raise rpc_failure(error) from None


def chain_blocking(chain: Chain, call: Callable[[str, Message], Message]) -> Chain:
    """Run the chain in straight-line code, blocked at each call."""
    chain.work("AB")
    chain.add("user", call("user", chain.question()))
    chain.work("CD")
    chain.add("query", call("query", chain.question()))
    chain.work("EF")
    chain.add("stock", call("stock", chain.question()))
    chain.work("GH")
    return chain


def stats(app: Application) -> Response:
    """Handle `/stats`: the server's own counters, and the kernel's data on its processes."""
    from workloads.introspection import report

    return Response(report(app), type=JSON)


def _streamed(_request: Request) -> Response:
    raise AssertionError("the protocol answers streamed routes by itself")


_READ = (b"GET", b"HEAD")


def routes(app: Application) -> Routes:
    """Return the routes of a server."""
    return {
        route.path: route
        for route in (
            Route(b"/", _READ, SHORT, hello),
            Route(b"/healthz", _READ, SHORT, healthz),
            Route(b"/cpu", _READ, CPU, cpu),
            Route(b"/io", _READ, IO, io, nonblocking=Route(b"/io", _READ, NONBLOCKING_IO, io_without_loop)),
            Route(b"/chain", _READ, CHAIN, lambda request: chain(request, app)),
            Route(b"/counter", (b"GET", b"HEAD", b"POST"), SHORT, lambda request: counter(request, app)),
            Route(b"/crash", _READ, SHORT, crash),
            Route(b"/stats", _READ, SHORT, lambda _request: stats(app)),
            Route(b"/echo", (b"POST",), STREAM, _streamed),
        )
    }
