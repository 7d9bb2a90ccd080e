"""Multi-process: the parent accepts and forks a child for each connection.

Each child has its own copy of the memory, and one client. The crash of a child affects no other client, and children
run on all cores. On the other hand, a process costs more to create than a thread, and memory is shared only where the
program arranges it. With `--per request`, each connection, and so each child, ends after one request.
"""

from __future__ import annotations

import gc
from _socket import SHUT_WR, socketpair
from os import WNOHANG, _exit, close, fork, kill, waitpid, waitstatus_to_exitcode
from time import monotonic, sleep

from workloads.accept_loop import AcceptLoop
from workloads.application import log
from workloads.http.response import date_line
from workloads.net import refuse
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

WARM_UPS = 24
"""Number of warm-up clients. Python specialises code that has run about 16 times."""


def serve(app: Application, listener: Socket) -> bool:
    """Accept and fork until SIGTERM or SIGINT, then pass the signal on to the children."""
    places = app.share_between_processes()
    if app.settings.per == "request":
        app.keeps_alive = False
    accept_loop = AcceptLoop(app, listener)
    _warm_up(app, accept_loop, places)
    wake_on(SIGCHLD)
    children: dict[int, int] = {}  # the slot of each child, by pid
    vacant: list[int] = []
    foreign = [descriptor for descriptor in (listener.fileno(), app.services.life) if descriptor >= 0]
    # A garbage collection in a child would write to all objects of the parent, and so copy their pages. It does not
    # touch frozen objects.
    gc.freeze()
    for client in accept_loop.clients():
        if client is not None:
            app.counts.connections.set(len(children) + 1)  # set before the fork, as the child may be asked for it
            date_line()  # formatted here once a second, instead of in each child
            place = vacant.pop() if vacant else len(children)
            app.place = places[place : place + 1]
            child = _fork(accept_loop, client, foreign)
            if child:
                children[child] = place
            else:
                vacant.append(place)
            client.close()
        _reap(children, vacant)
        app.counts.connections.set(len(children))
    accept_loop.close()
    return _drain(app, children)


def _warm_up(app: Application, accept_loop: AcceptLoop, places: memoryview) -> None:
    """Serve clients of our own before the first fork, so that children write to fewer pages.

    Python specialises code by what it meets (PEP 659), and the dynamic linker binds a function at its first call. Both
    write to memory, and the first write of a child to a page copies it; so both are done once here. Specialised code
    also finds attributes without writing to their names' reference counts.
    """
    app.place = places[:1]
    for _ in range(WARM_UPS):
        ours, theirs = socketpair()
        theirs.send(b"GET / HTTP/1.1\r\nHost: warm-up\r\nConnection: close\r\n\r\n")
        theirs.shutdown(SHUT_WR)
        accept_loop.serve_socket(ours)
        theirs.close()
    places[0] = 0


def _fork(accept_loop: AcceptLoop, client: Socket, foreign: list[int]) -> int:
    """Fork a child for the client. Returns its pid; or 0 if it could not be created, and the client got 503."""
    # Python loses a signal that arrives early in a child, so signals are blocked until the child is ready.
    hold_termination()
    try:
        child = fork()
        if child == 0:
            _child(accept_loop, client, foreign)
        return child
    except OSError as error:  # the pids limit, or no memory
        log(f"fork: {error.strerror}")
        refuse(client)
        return 0
    finally:
        release_termination()


def _child(accept_loop: AcceptLoop, client: Socket, foreign: list[int]) -> None:
    """Serve one client in a forked child, then exit.

    The child inherits the parent's signal handlers, which act on its own copy of the accept loop.

    Args:
        accept_loop: the copy of the parent's accept loop.
        client: the client's socket.
        foreign: descriptors of the parent to close, because the copies would keep its sockets and services alive.
    """
    code = 1
    try:
        for descriptor in foreign:
            close(descriptor)
        release_termination()
        accept_loop.serve_socket(client)
        code = 0
    finally:
        _exit(code)  # without the parent's cleanup


def _reap(children: dict[int, int], vacant: list[int]) -> None:
    """Reap the children that have ended (wait(2)), and free their slots."""
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
        _reap(children, [])
        sleep(0.005)
    for child in children:
        kill(child, SIGKILL)
    return not children
