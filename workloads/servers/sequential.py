"""Sequential: one thread reads one client after the other, and so waits for the slowest.

It calls `recv(fd1)`, then `recv(fd2)`: while the first client is silent, the second is not read, however much it has
sent. This server exists to show the problem; multiplexing (see `eventloop`) is the solution.
"""

from __future__ import annotations

from workloads.accept_loop import AcceptLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.blocking_connection import BlockingConnection
    from workloads.net import Socket

SECTION = "2.8.4"

PICTURE = """
 client 1 o (silent)         one thread
 client 2 o "GET / ..."      +-----------------------------------------+
 client 3 o "GET / ..."      | recv(fd1) . . . waits for client 1 . .  |
                             | recv(fd2)       not reached             |
                             | recv(fd3)       not reached             |
                             +-----------------------------------------+
"""


def serve(app: Application, listener: Socket) -> bool:
    """Serve the connected clients in turn, one read at a time."""
    accept_loop = AcceptLoop(app, listener)
    connections: list[BlockingConnection] = []
    while not accept_loop.draining:
        for client in accept_loop.clients(wait=not connections):
            if client is None:
                continue
            connections.append(accept_loop.open(client))
            break
        for connection in list(connections):
            if not connection.step():
                connections.remove(connection)
                accept_loop.close_connection(connection)
    accept_loop.close()
    for connection in connections:
        accept_loop.close_connection(connection)
    return True
