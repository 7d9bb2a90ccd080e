"""What the service does, the same in every model: a request in, a response out."""

from __future__ import annotations

from _socket import SO_RCVTIMEO, SOL_SOCKET, socketpair

from workloads.http.response import Response
from workloads.http.routing import CPU, IO, SHORT, STREAM, Route, Routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.http.request import Request

_HELLO = Response(b"hello")
_HEALTHY = Response(b"ok\n")
_SALT = b"workloads"


def hello(_request: Request, _app: Application) -> Response:
    """`/`: the shortest answer there is."""
    return _HELLO


def healthz(_request: Request, _app: Application) -> Response:
    """`/healthz`: the server serves."""
    return _HEALTHY


def cpu(request: Request, _app: Application) -> Response:
    """`/cpu?rounds=N`: PBKDF2 (RFC 8018), N rounds.

    It is computed in C without the global interpreter lock; with `gil=1` in Python, holding it: the same digest.
    """
    from hashlib import pbkdf2_hmac  # it loads OpenSSL: 4 ms

    rounds = request.integer(b"rounds", 1000, 1, 100_000_000)
    if request.integer(b"gil", 0, 0, 1):
        digest = _pbkdf2(b"password", _SALT, rounds)
    else:
        digest = pbkdf2_hmac("sha256", b"password", _SALT, rounds)
    return Response(digest.hex().encode("ascii") + b"\n")


def _pbkdf2(password: bytes, salt: bytes, rounds: int) -> bytes:
    """The first block of PBKDF2-HMAC-SHA256, in bytecode: hashlib keeps the lock for inputs below 2 KiB."""
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


def io(request: Request, _app: Application) -> Response:
    """`/io?ms=N`: a read that blocks its thread for N milliseconds."""
    milliseconds = request.integer(b"ms", 10, 0, 600_000)
    blocking_read(milliseconds)
    return Response(b"read for %d ms\n" % milliseconds)


def blocking_read(milliseconds: int) -> None:
    """Block in recvfrom(2) on a socket that nobody writes to, until the kernel's receive timeout (socket(7))."""
    if not milliseconds:
        return  # a timeout of zero would mean none
    seconds, rest = divmod(milliseconds, 1000)
    ours, theirs = socketpair()
    try:
        ours.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _timeval(seconds, rest * 1000))
        ours.recv(1)
    except BlockingIOError:
        return
    finally:
        ours.close()
        theirs.close()


def _timeval(seconds: int, microseconds: int) -> bytes:
    from sys import byteorder

    return seconds.to_bytes(8, byteorder) + microseconds.to_bytes(8, byteorder)


def _streamed(_request: Request, _app: Application) -> Response:
    raise AssertionError("the protocol answers streamed routes by itself")


_READ = (b"GET", b"HEAD")

ROUTES = Routes(
    (
        Route(b"/", _READ, SHORT, hello),
        Route(b"/healthz", _READ, SHORT, healthz),
        Route(b"/cpu", _READ, CPU, cpu),
        Route(b"/io", _READ, IO, io),
        Route(b"/echo", (b"POST",), STREAM, _streamed),
    )
)
