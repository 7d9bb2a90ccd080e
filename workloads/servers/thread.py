"""Multi-threaded: a thread for each connection, all in one address space.

The code of a thread is the simplest there is: read, compute, write, again. Waiting costs nothing but the thread, for
the kernel puts it aside and runs another. All threads see the same memory, so sharing is a plain variable, with a
lock.
"""

from __future__ import annotations

from _thread import stack_size, start_new_thread

from workloads.net import refuse
from workloads.reception import Reception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.net import Socket

SECTION = "2.8.2"

PICTURE = """
                    one process, one memory
                   +------------------------------------+
 client o -------> | thread 1: read | answer | read ... |
 client o -------> | thread 2: read . . . (blocked)     |
 client o -------> | thread 3: read | answer . . .      |
                   | main: accept, start a thread       |
                   +------------------------------------+
"""

STACK_BYTES = 524288
"""The default of 8 MiB is address space only, but 10,000 of them are refused under a strict overcommit policy."""


def serve(app: Application, listener: Socket) -> bool:
    """A thread for each client, until told to stop."""
    stack_size(STACK_BYTES)
    reception = Reception(app, listener)
    for client in reception.clients():
        if client is None:
            continue
        connection = reception.open(client)
        try:
            start_new_thread(reception.serve, (connection,))
        except RuntimeError:  # the pids limit, or no memory for a stack
            refuse(client)
            reception.leave(connection)
    return reception.drain()
