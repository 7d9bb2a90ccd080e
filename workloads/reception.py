"""The door of the servers that block: it lets clients in one by one, until the server is told to stop."""

from __future__ import annotations

import os
from select import POLLIN, poll
from time import monotonic, sleep

from workloads.blocking_connection import BlockingConnection
from workloads.net import Acceptor, refuse
from workloads.signals import on_termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from workloads.application import Application
    from workloads.net import Socket

    class Inside(Protocol):
        """A connection, as the reception sees it."""

        def hurry(self) -> None:
            """Stop waiting for the next request."""


class Reception:
    """Accepts clients and knows which are still here.

    Attributes:
        connections: the open ones.
        draining: SIGTERM or SIGINT has come.
    """

    def __init__(self, app: Application, listener: Socket) -> None:
        self._app = app
        self._acceptor = Acceptor(listener)
        self._listener = listener
        self._wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.connections: set[Inside] = set()
        self.draining = False
        on_termination(self._terminate, self.wake_write)

    def clients(self, *, wait: bool = True) -> Iterator[Socket | None]:
        """Sockets of clients as they come, until the server is told to stop; None when it was only woken up.

        Args:
            wait: for clients to come; otherwise those who wait at the door are let in, and that is all.
        """
        watch = poll()
        watch.register(self._listener.fileno(), POLLIN)
        watch.register(self._wake_read, POLLIN)
        while not self.draining:
            socket = self._acceptor.accept()
            if socket is not None:
                if self._app.full:
                    refuse(socket)
                else:
                    yield socket
                continue
            if not wait:
                return
            ready = watch.poll(1000)
            if any(descriptor == self._wake_read for descriptor, _ in ready):
                os.read(self._wake_read, 4096)
                yield None

    def open(self, socket: Socket) -> BlockingConnection:
        """A connection for a client that was let in."""
        connection = BlockingConnection(socket, self._app)
        self.connections.add(connection)
        if self.draining:  # since a moment ago, too late to be in the set
            connection.hurry()
        return connection

    def receive(self, socket: Socket) -> None:
        """Serve a client that was let in until it leaves."""
        self.serve(self.open(socket))

    def serve(self, connection: BlockingConnection) -> None:
        """Serve a client until it leaves."""
        try:
            connection.serve()
        finally:
            self.connections.discard(connection)

    def leave(self, connection: BlockingConnection) -> None:
        """A client is gone."""
        self.connections.discard(connection)
        connection.close()

    def drain(self) -> bool:
        """Close the door and wait for those inside, up to the grace time; whether all have finished."""
        self.close()
        until = monotonic() + self._app.limits.grace
        while self.connections and monotonic() < until:
            for connection in list(self.connections):
                connection.hurry()
            sleep(0.01)
        return not self.connections

    def close(self) -> None:
        """Stop listening."""
        self._acceptor.close()

    def _terminate(self) -> None:
        self.draining = True
        self._app.keeps_alive = False
        for connection in list(self.connections):
            connection.hurry()
