"""Multi-threaded: a thread for each connection, all in one address space.

The code of a thread is simple: read, compute, write, repeat. A thread that waits costs no processor time, as the kernel
runs another one. All threads share the memory, so shared state is a variable with a lock.
"""

from __future__ import annotations

from _thread import stack_size, start_new_thread

from workloads.accept_loop import AcceptLoop
from workloads.net import refuse

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
"""Size of a thread's stack. The default of 8 MiB is only address space, but a strict overcommit policy refuses 10,000
of them."""


def serve(app: Application, listener: Socket) -> bool:
    """Start a thread for each client, until SIGTERM or SIGINT."""
    stack_size(STACK_BYTES)
    accept_loop = AcceptLoop(app, listener)
    for client in accept_loop.clients():
        if client is None:
            continue
        connection = accept_loop.open(client)
        try:
            start_new_thread(accept_loop.serve, (connection,))
        except RuntimeError:  # the pids limit, or no memory for a stack
            refuse(client)
            accept_loop.close_connection(connection)
    return accept_loop.drain()
