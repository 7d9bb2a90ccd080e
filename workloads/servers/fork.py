"""Multi-process: the parent accepts and forks a child for each connection.

Each child has a copy of the memory and one client. A child that dies takes nobody with it, and children run on all
cores. The price: making a process costs more than making a thread, and what is shared has to be shared on purpose.
`--per request` ends each connection, and so each child, after one request.
"""

from __future__ import annotations

import gc
import os
from _socket import SHUT_WR, socketpair
from time import monotonic, sleep

from workloads.application import log
from workloads.blocking_connection import BlockingConnection
from workloads.net import refuse
from workloads.reception import Reception
from workloads.signals import (
    SIGCHLD,
    SIGKILL,
    SIGTERM,
    hold_termination,
    on_termination,
    release_termination,
    wake_on,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.net import Socket

SECTION = "2.8.1"

PICTURE = """
                  parent: accept, fork           children: one client each
                 +---------------------+        +------------------------+
 client o -----> |                     | -----> | child 1: read, answer  |
 client o -----> | fork(), fork(), ... | -----> | child 2: read, answer  |
 client o -----> |                     | -----> | child 3: dies alone    |
                 +---------------------+        +------------------------+
"""


def serve(app: Application, listener: Socket) -> bool:
    """Accept and fork, until told to stop; then pass the word on to the children."""
    _rehearse(app)
    app.share_between_processes()
    if app.settings.per == "request":
        app.keeps_alive = False
    reception = Reception(app, listener)
    wake_on(SIGCHLD)
    children: set[int] = set()
    # A collection in a child would write to every object of the parent, and each page that is written to is copied.
    gc.disable()
    gc.freeze()
    for client in reception.clients():
        if client is not None:
            app.counts.connections.set(len(children) + 1)  # before the child can be asked for it
            child = _fork(app, reception, listener, client)
            if child:
                children.add(child)
            client.close()
        _bury(children)
        app.counts.connections.set(len(children))
    reception.close()
    return _drain(app, children)


def _rehearse(app: Application) -> None:
    """Serve a client of our own before the first fork.

    Python adapts its code to what it meets (PEP 659), and the dynamic linker binds a function at its first call. Both
    write to memory, and each page that a child writes to first has to be copied: so it is done here, once, for all.
    """
    ours, theirs = socketpair()
    theirs.send(b"GET / HTTP/1.1\r\nHost: rehearsal\r\n\r\n" * 20)
    theirs.shutdown(SHUT_WR)
    BlockingConnection(ours, app).serve()
    theirs.close()


def _fork(app: Application, reception: Reception, listener: Socket, client: Socket) -> int:
    """A child for the client; 0 if there cannot be one, and the client has been told."""
    # A signal between the fork and the child's own handlers would be lost on the parent's, which the child inherits.
    hold_termination()
    try:
        child = os.fork()
        if child == 0:
            _child(app, reception, listener, client)
        return child
    except OSError as error:  # the pids limit, or no memory
        log(f"fork: {error.strerror}")
        refuse(client)
        return 0
    finally:
        release_termination()


def _child(app: Application, reception: Reception, listener: Socket, client: Socket) -> None:
    """The life of a child: one client, and the end."""
    code = 1
    try:
        gc.enable()
        listener.close()
        app.in_child()
        connection = reception.open(client)
        on_termination(lambda: _leave(app, reception), reception.wake_write)
        release_termination()
        connection.serve()
        code = 0
    finally:
        os._exit(code)  # and nothing of what the parent meant to do at its own end


def _leave(app: Application, reception: Reception) -> None:
    app.keeps_alive = False
    for connection in reception.connections:
        connection.hurry()


def _bury(children: set[int]) -> None:
    """Take note of the children that have ended, as every parent must (wait(2))."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if pid in children:
            children.discard(pid)
            if status:
                log(f"child {pid} ended with {os.waitstatus_to_exitcode(status)}")


def _drain(app: Application, children: set[int]) -> bool:
    for child in children:
        os.kill(child, SIGTERM)
    until = monotonic() + app.limits.grace
    while children and monotonic() < until:
        _bury(children)
        sleep(0.005)
    for child in children:
        os.kill(child, SIGKILL)
    return not children
