"""The accept loop of the blocking servers: it accepts clients one by one until SIGTERM or SIGINT."""

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

    class Connection(Protocol):
        """The method of a connection that the accept loop calls."""

        def stop_waiting(self) -> None:
            """End a read that waits for the next request."""


class AcceptLoop:
    """Accepts clients, and keeps the set of open connections.

    Attributes:
        connections: the open connections.
        draining: True once SIGTERM or SIGINT has arrived.
    """

    def __init__(self, app: Application, listener: Socket) -> None:
        self._app = app
        self._acceptor = Acceptor(listener)
        self._listener = listener
        self._wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.connections: set[Connection] = set()
        self.draining = False
        on_termination(self._terminate, self.wake_write)

    def clients(self, *, wait: bool = True) -> Iterator[Socket | None]:
        """Yield the sockets of new clients until SIGTERM or SIGINT; yields None after another wake-up.

        Args:
            wait: wait for clients; otherwise only those that are waiting already are accepted.
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
        """Create the connection of an accepted client."""
        connection = BlockingConnection(socket, self._app)
        self.connections.add(connection)
        if self.draining:  # the signal arrived before the connection was in the set
            connection.stop_waiting()
        return connection

    def serve_socket(self, socket: Socket) -> None:
        """Serve an accepted client until its connection ends."""
        self.serve(self.open(socket))

    def serve(self, connection: BlockingConnection) -> None:
        """Serve a connection until it ends."""
        try:
            connection.serve()
        finally:
            self.connections.discard(connection)

    def close_connection(self, connection: BlockingConnection) -> None:
        """Close a connection and forget it."""
        self.connections.discard(connection)
        connection.close()

    def drain(self) -> bool:
        """Stop listening and wait, up to the grace time, for the open connections. Returns whether all have ended."""
        self.close()
        until = monotonic() + self._app.limits.grace
        while self.connections and monotonic() < until:
            for connection in list(self.connections):
                connection.stop_waiting()
            sleep(0.01)
        return not self.connections

    def close(self) -> None:
        """Stop listening."""
        self._acceptor.close()

    def _terminate(self) -> None:
        self.draining = True
        self._app.keeps_alive = False
        for connection in list(self.connections):
            connection.stop_waiting()
