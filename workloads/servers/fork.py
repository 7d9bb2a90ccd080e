"""Multi-process: the parent accepts and forks a child for each connection.

Each child has a copy of the memory and one client. A child that dies takes nobody with it, and children run on all
cores. The price: making a process costs more than making a thread, and what is shared has to be shared on purpose.
`--per request` ends each connection, and so each child, after one request.
"""

from __future__ import annotations

import gc
from _socket import SHUT_WR, socketpair
from os import WNOHANG, _exit, close, fork, kill, waitpid, waitstatus_to_exitcode
from time import monotonic, sleep

from workloads.application import log
from workloads.http.response import date_line
from workloads.net import refuse
from workloads.reception import Reception
from workloads.signals import SIGCHLD, SIGKILL, SIGTERM, hold_termination, release_termination, wake_on

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

REHEARSALS = 24
"""Python adapts code that has run some 16 times."""


def serve(app: Application, listener: Socket) -> bool:
    """Accept and fork, until told to stop; then pass the word on to the children."""
    places = app.share_between_processes()
    if app.settings.per == "request":
        app.keeps_alive = False
    reception = Reception(app, listener)
    _rehearse(app, reception, places)
    wake_on(SIGCHLD)
    children: dict[int, int] = {}  # the place of each, by pid
    vacant: list[int] = []
    foreign = [descriptor for descriptor in (listener.fileno(), app.services.life) if descriptor >= 0]
    # A collection in a child would write to every object of the parent, and each page that is written to is copied.
    # Frozen objects are left alone.
    gc.freeze()
    for client in reception.clients():
        if client is not None:
            app.counts.connections.set(len(children) + 1)  # before the child can be asked for it
            date_line()  # formatted here once a second, not once in each child
            place = vacant.pop() if vacant else len(children)
            app.place = places[place : place + 1]
            child = _fork(reception, client, foreign)
            if child:
                children[child] = place
            else:
                vacant.append(place)
            client.close()
        _bury(children, vacant)
        app.counts.connections.set(len(children))
    reception.close()
    return _drain(app, children)


def _rehearse(app: Application, reception: Reception, places: memoryview) -> None:
    """Serve clients of our own before the first fork.

    Python adapts its code to what it meets (PEP 659), and the dynamic linker binds a function at its first call. Both
    write to memory, and each page that a child writes to first has to be copied: so it is done here, once, for all.
    Code that has been adapted also finds attributes without touching their names.
    """
    app.place = places[:1]
    for _ in range(REHEARSALS):
        ours, theirs = socketpair()
        theirs.send(b"GET / HTTP/1.1\r\nHost: rehearsal\r\nConnection: close\r\n\r\n")
        theirs.shutdown(SHUT_WR)
        reception.receive(ours)
        theirs.close()
    places[0] = 0


def _fork(reception: Reception, client: Socket, foreign: list[int]) -> int:
    """A child for the client; 0 if there cannot be one, and the client has been told."""
    # Python forgets a signal that reaches a child in its first steps: it has to wait until the child is ready for it.
    hold_termination()
    try:
        child = fork()
        if child == 0:
            _child(reception, client, foreign)
        return child
    except OSError as error:  # the pids limit, or no memory
        log(f"fork: {error.strerror}")
        refuse(client)
        return 0
    finally:
        release_termination()


def _child(reception: Reception, client: Socket, foreign: list[int]) -> None:
    """The life of a child: one client, and the end.

    The parent's signal handlers are the child's too: they act on the reception, of which each has a copy.

    Args:
        reception: the parent's, as it was at the fork.
        client: whom to serve.
        foreign: descriptors that are the parent's business; an open copy would keep alive what the parent closes.
    """
    code = 1
    try:
        for descriptor in foreign:
            close(descriptor)
        release_termination()
        reception.receive(client)
        code = 0
    finally:
        _exit(code)  # and nothing of what the parent meant to do at its own end


def _bury(children: dict[int, int], vacant: list[int]) -> None:
    """Take note of the children that have ended, as every parent must (wait(2)), and of the places that they leave."""
    while children:
        pid, status = waitpid(-1, WNOHANG)
        if not pid:
            return
        if pid in children:
            vacant.append(children.pop(pid))
            if status:
                log(f"child {pid} ended with {waitstatus_to_exitcode(status)}")


def _drain(app: Application, children: dict[int, int]) -> bool:
    for child in children:
        kill(child, SIGTERM)
    until = monotonic() + app.limits.grace
    while children and monotonic() < until:
        _bury(children, [])
        sleep(0.005)
    for child in children:
        kill(child, SIGKILL)
    return not children
