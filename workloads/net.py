"""Sockets: listening, accepting, and what to do when no descriptor is left.

`_socket` is the C half of `socket`; the Python half costs 6 ms to import, a third of a server's start, for names that
are not used here. The same holds for `_signal` (4 ms) and `_thread` in place of `threading` (4 ms) elsewhere.
"""

from __future__ import annotations

import _socket
import errno
import os
from _socket import (
    AF_INET,
    IPPROTO_TCP,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    inet_pton,
)
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Socket = _socket.socket

# Accepts to a bare descriptor; `socket.socket.accept` wraps it, and typeshed does not know it.
_accept: Callable[[Socket], tuple[int, object]] = Socket._accept  # type: ignore[attr-defined]

BACKLOG = 4096
"""Connections that wait to be accepted; the kernel caps it at net.core.somaxconn (listen(2))."""

RECEIVE_BYTES = 65536

_GONE = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


def listen(host: str, port: int) -> Socket:
    """A non-blocking listening socket.

    Raises:
        OSError: the address is no IPv4 address, not of this host, or taken.
    """
    try:
        inet_pton(AF_INET, host)  # a name would need a resolver; and `bind` would ask one
    except OSError:
        raise OSError(errno.EINVAL, "not an IPv4 address") from None
    listener = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener


class Acceptor:
    """Accepts connections, and keeps one descriptor in reserve for the day when there is none left.

    With no descriptor, accept(2) fails with EMFILE and leaves the connection in the queue: the client waits, and a
    level-triggered loop spins. So the reserve is given up for a moment, the client is told
    503, and the reserve taken back.
    """

    __slots__ = ("_listener", "_reserve")

    def __init__(self, listener: Socket) -> None:
        self._listener = listener
        self._reserve = os.eventfd(0)  # any descriptor would do

    def accept(self) -> Socket | None:
        """A connection, blocking; None if no client waits.

        Raises:
            OSError: the listener is broken.
        """
        while True:
            try:
                descriptor, _ = _accept(self._listener)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _GONE:  # that client's trouble, not ours (accept(2))
                    continue
                if error.errno not in _EXHAUSTED:
                    raise
                if not self._turn_away():
                    return None
                continue
            connection = Socket(AF_INET, SOCK_STREAM, 0, descriptor)
            connection.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            return connection

    def _turn_away(self) -> bool:
        """Answer one waiting client 503 on the reserved descriptor; False if there is none to be had."""
        if self._reserve < 0:
            return False
        os.close(self._reserve)
        self._reserve = -1
        try:
            descriptor, _ = _accept(self._listener)
            refuse(Socket(AF_INET, SOCK_STREAM, 0, descriptor))
        except OSError:
            return False
        finally:
            self._take_reserve()
        return True

    def _take_reserve(self) -> None:
        try:
            self._reserve = os.eventfd(0)
        except OSError:
            self._reserve = -1  # another thread was quicker; without it clients wait in the queue

    def close(self) -> None:
        """Stop listening: further clients are refused by the kernel."""
        self._listener.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def refuse(connection: Socket) -> None:
    """Tell a client that there is no room, and close."""
    try:
        connection.setblocking(False)
        connection.send(BUSY)
    except OSError:
        return
    finally:
        connection.close()


def timeval(seconds: float) -> bytes:
    """A time as SO_RCVTIMEO and SO_SNDTIMEO take it: struct timeval, two longs (socket(7)); at least a millisecond."""
    whole, rest = divmod(max(round(seconds * 1000000), 1000), 1000000)
    return whole.to_bytes(8, byteorder) + rest.to_bytes(8, byteorder)
