"""The event loop's side of a server: accept connections, check deadlines, and drain at a signal."""

from __future__ import annotations

from select import EPOLLIN

from workloads.connection import Connection
from workloads.loop import TICK, EventLoop
from workloads.net import Acceptor, refuse
from workloads.signals import on_termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from workloads.application import Application
    from workloads.connection import OnRequest
    from workloads.net import Socket

    class Member(Protocol):
        """The methods of a connection that the front calls."""

        def check_deadline(self, now: float) -> None:
            """Close the connection if its deadline has passed. Called about once a second."""

        def drain(self) -> None:
            """Answer the requests that have been received, then close."""

        def close(self) -> None:
            """Close the connection."""

    Admit = Callable[[Socket, Callable[[Member], None]], Member]

ACCEPTS_PER_ROUND = 64
"""Limit on consecutive accepts, so that a burst of new clients does not starve the connected ones."""


class Front:
    """Accepts connections on an event loop, and keeps the set of those that are open.

    Args:
        loop: the loop, which runs on the calling thread.
        app: the state that the connections share.
        listener: the listening socket; the front closes it.
        admit: makes a connection from a socket; the connection calls the second argument when it has ended.
    """

    def __init__(self, loop: EventLoop, app: Application, listener: Socket, admit: Admit) -> None:
        self._loop = loop
        self._app = app
        self._acceptor = Acceptor(listener)
        self._listener = listener.fileno()
        self._admit = admit
        self._connections: set[Member] = set()
        self._drain_until = 0.0
        loop.register(self._listener, EPOLLIN, self._accept)
        loop.call_at(loop.now + TICK, self._tick)

    def run(self) -> bool:
        """Serve until SIGTERM or SIGINT. Returns False if requests had to be cut off."""
        on_termination(self._terminate, self._loop.wake_write)
        self._loop.run()
        finished = not self._connections
        for connection in list(self._connections):
            connection.close()
        return finished

    def _terminate(self) -> None:
        self._app.keeps_alive = False  # at once: a handler may be running in the loop, and its response comes first
        self._loop.post(self._drain)

    def _accept(self, _event: int) -> None:
        for _ in range(ACCEPTS_PER_ROUND):
            socket = self._acceptor.accept()
            if socket is None:
                return
            if self._app.full:
                refuse(socket)
                continue
            self._connections.add(self._admit(socket, self._closed))

    def _closed(self, connection: Member) -> None:
        self._connections.discard(connection)
        if self._drain_until and not self._connections:
            self._loop.stop()

    def _tick(self) -> None:
        now = self._loop.now
        if self._drain_until and now >= self._drain_until:
            self._loop.stop()
        for connection in list(self._connections):
            connection.check_deadline(now)
        self._loop.call_at(now + TICK, self._tick)

    def _drain(self) -> None:
        """Accept no more connections; close idle ones now, and the others after their response."""
        if self._drain_until:
            return
        self._drain_until = self._loop.now + self._app.limits.grace
        self._loop.call_at(self._drain_until, self._loop.stop)
        self._loop.forget(self._listener)
        self._acceptor.close()
        for connection in list(self._connections):
            connection.drain()
        if not self._connections:
            self._loop.stop()


def serve_requests(loop: EventLoop, app: Application, listener: Socket, handler: OnRequest) -> bool:
    """Call `handler(connection, request)` on the loop's thread for each request, until SIGTERM or SIGINT.

    Returns:
        False if requests had to be cut off.
    """

    def admit(socket: Socket, on_close: Callable[[Connection], None]) -> Connection:
        return Connection(loop, socket, app, handler, on_close)

    return Front(loop, app, listener, admit).run()
