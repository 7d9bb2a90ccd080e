"""Sequential: reads one client after the other, and so waits for the slowest.

`recv(fd1)`, then `recv(fd2)`: while the first client is silent, the second is not read, however much it has sent. The
server exists to show this; multiplexing (see `eventloop`) is the answer to it.
"""

from __future__ import annotations

from workloads.reception import Reception

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
    """Round and round, one client after the other."""
    reception = Reception(app, listener)
    inside: list[BlockingConnection] = []
    while not reception.draining:
        for client in reception.clients(wait=not inside):
            if client is None:
                continue
            inside.append(reception.open(client))
            break
        for connection in list(inside):
            if not connection.step():
                inside.remove(connection)
                reception.leave(connection)
    reception.close()
    for connection in inside:
        reception.leave(connection)
    return True
