"""What every single-threaded front does: accept, keep the time, and drain when told to."""

from __future__ import annotations

from select import EPOLLIN

from workloads.connection import Connection
from workloads.loop import TICK, EventLoop
from workloads.net import Acceptor, refuse
from workloads.signals import on_termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.connection import OnRequest
    from workloads.net import Socket

ACCEPTS_PER_ROUND = 64
"""So that a burst of new clients does not starve those that are there."""


class Front:
    """Listens on an event loop and makes a Connection of each client."""

    def __init__(self, loop: EventLoop, app: Application, listener: Socket, on_request: OnRequest) -> None:
        self._loop = loop
        self._app = app
        self._acceptor = Acceptor(listener)
        self._listener = listener.fileno()
        self._on_request = on_request
        self._connections: set[Connection] = set()
        self._drain_until = 0.0
        loop.register(self._listener, EPOLLIN, self._accept)
        loop.call_at(loop.now + TICK, self._tick)

    def run(self) -> bool:
        """Serve until SIGTERM or SIGINT; False if requests had to be cut off."""
        on_termination(lambda: self._loop.post(self._drain), self._loop.wake_write)
        self._loop.run()
        finished = not self._connections
        for connection in list(self._connections):
            connection.close()
        return finished

    def _accept(self, _event: int) -> None:
        for _ in range(ACCEPTS_PER_ROUND):
            socket = self._acceptor.accept()
            if socket is None:
                return
            if self._app.full:
                refuse(socket)
                continue
            self._connections.add(Connection(self._loop, socket, self._app, self._on_request, self._closed))

    def _closed(self, connection: Connection) -> None:
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
        """No new connection; those that are idle end now, the others after their response."""
        if self._drain_until:
            return
        self._app.keeps_alive = False
        self._drain_until = self._loop.now + self._app.limits.grace
        self._loop.call_at(self._drain_until, self._loop.stop)
        self._loop.forget(self._listener)
        self._acceptor.close()
        for connection in list(self._connections):
            connection.drain()
        if not self._connections:
            self._loop.stop()
