"""Wait until a sandbox is ready: send requests from the generator's namespace until a correct reply arrives.

Each attempt is a new connection with a short timeout, so that no timer of TCP or ARP (1 s and more) distorts the
measured time.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from sandbox.errors import EngineError, NotReadyError
from sandbox.network import lab

CONNECT_TIMEOUT = 0.1
"""Seconds for one attempt to connect; a guest that is up answers in well under a millisecond."""
REPLY_TIMEOUT = 5.0
_PAUSE = 0.0005
"""Seconds between attempts, which is the most that polling adds to the measured time."""
_SLOW_AFTER, _SLOW_PAUSE = 2.0, 0.02
"""After so many seconds, poll less often: a precise time no longer matters, and polling takes CPU from the workload."""
_CHECK_INTERVAL = 0.25
"""Seconds between checks that the workload still runs; with Docker a check takes milliseconds."""
_MAX_REPLY = 65536
_BATCH = 32


def wait_for_reply(
    address: str, port: int, path: str, *, deadline: float, alive: Callable[[], bool], name: str
) -> None:
    """Return as soon as GET `path` gets a complete reply with status 200.

    Args:
        address: address on the lab network.
        port: TCP port.
        path: absolute path of the request.
        deadline: a value of time.monotonic().
        alive: returns whether the workload still runs.
        name: the sandbox's name, for messages.

    Raises:
        NotReadyError: the workload ended, or no correct reply came in time.
    """
    begun = time.monotonic()
    seen = "nothing listened"
    next_check = begun + _CHECK_INTERVAL
    request = f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n".encode("ascii")
    with _Sockets() as sockets:
        while True:
            try:
                status = _request(sockets.take(), (address, port), request)
                if status == 200:
                    return
                seen = f"it answered {status}" if status else "it closed the connection without an answer"
            except (ConnectionRefusedError, TimeoutError):
                pass
            except OSError as error:
                seen = error.strerror or str(error)
            now = time.monotonic()
            if now >= next_check:
                next_check = now + _CHECK_INTERVAL
                if not alive():
                    raise NotReadyError(f"the workload of {name} ended before it served a reply", "see its log")
            if now >= deadline:
                raise NotReadyError(f"{name} did not serve http://{address}:{port}{path} in time: {seen}")
            time.sleep(_PAUSE if now < begun + _SLOW_AFTER else _SLOW_PAUSE)


class _Sockets:
    """New sockets in the generator's namespace, created in batches to take less CPU from the server."""

    def __init__(self) -> None:
        self._spare: list[socket.socket] = []

    def take(self) -> socket.socket:
        if not self._spare:
            try:
                self._spare = lab.generator_sockets(_BATCH, CONNECT_TIMEOUT)
            except EngineError as error:
                raise OSError(error.message) from error
        return self._spare.pop()

    def __enter__(self) -> _Sockets:
        return self

    def __exit__(self, *exc: object) -> None:
        for spare in self._spare:
            spare.close()


def _request(sock: socket.socket, address: tuple[str, int], request: bytes) -> int:
    """Send one request; return the status of a complete reply, 0 for none."""
    with sock:
        sock.connect(address)
        sock.settimeout(REPLY_TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        reply = b""
        while len(reply) < _MAX_REPLY:
            chunk = sock.recv(4096)
            if not chunk:
                break
            reply += chunk
    head, end, _ = reply.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    return int(parts[1]) if end and len(parts) > 1 and parts[1].isdigit() else 0
