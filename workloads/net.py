"""Listen, accept, and refuse connections, also when no descriptor is left.

`_socket` is the C half of `socket`; importing the Python half takes 6 ms, a third of a server's start, and nothing of
it is needed here. For the same reason other modules use `_signal` (4 ms) and `_thread` instead of `threading` (4 ms).
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

# Returns a bare descriptor. `socket.socket.accept` wraps it; typeshed does not list it.
_accept: Callable[[Socket], tuple[int, object]] = Socket._accept  # type: ignore[attr-defined]

BACKLOG = 4096
"""Maximum number of connections waiting to be accepted, capped by net.core.somaxconn (listen(2))."""

RECEIVE_BYTES = 65536

_GONE = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


def listen(host: str, port: int) -> Socket:
    """Create a non-blocking listening socket.

    Raises:
        OSError: the address is not an IPv4 address, not one of this host, or in use.
    """
    try:
        inet_pton(AF_INET, host)  # `bind` would resolve a host name, which may block
    except OSError:
        raise OSError(errno.EINVAL, "not an IPv4 address") from None
    listener = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)
    return listener


class Acceptor:
    """Accepts connections, and keeps one descriptor in reserve in case none is left.

    Without a free descriptor, accept(2) fails with EMFILE and leaves the connection in the queue: the client waits, and
    a level-triggered loop spins. So the reserved descriptor is closed for a moment, the client gets a 503 response, and
    the descriptor is reserved again.
    """

    __slots__ = ("_listener", "_reserve")

    def __init__(self, listener: Socket) -> None:
        self._listener = listener
        self._reserve = os.eventfd(0)  # any descriptor would do

    def accept(self) -> Socket | None:
        """Accept a connection, as a blocking socket. Returns None if no client is waiting.

        Raises:
            OSError: the listening socket is broken.
        """
        while True:
            try:
                descriptor, _ = _accept(self._listener)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in _GONE:  # an error of that connection, not of the listening socket (accept(2))
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
        """Answer one waiting client with 503, using the reserved descriptor. Returns False if there is none."""
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
            self._reserve = -1  # another thread took it; without a reserve, clients wait in the queue

    def close(self) -> None:
        """Stop listening; the kernel refuses further clients."""
        self._listener.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def refuse(connection: Socket) -> None:
    """Answer a client with 503 and close the connection."""
    try:
        connection.setblocking(False)
        connection.send(BUSY)
    except OSError:
        return
    finally:
        connection.close()


def timeval(seconds: float) -> bytes:
    """Return a time, at least 1 ms, as a struct timeval of two longs, for SO_RCVTIMEO and SO_SNDTIMEO (socket(7))."""
    whole, rest = divmod(max(round(seconds * 1000000), 1000), 1000000)
    return whole.to_bytes(8, byteorder) + rest.to_bytes(8, byteorder)
