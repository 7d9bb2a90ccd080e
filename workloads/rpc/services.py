"""The services A, B and C: three TCP servers in processes of their own, in the same sandbox as the server.

They are forked before the server has threads, and sleep on their listening sockets until the first call: until then
they cost one fork. They end with the server, which holds the other end of a pipe: its end-of-file is the server's end.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_STREAM
from select import POLLIN, poll

from workloads.net import Socket
from workloads.signals import SIGCHLD, SIGINT, SIGTERM, ignore, restore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.settings import Settings

NAMES = ("user", "query", "stock")
"""GetUserInfo, GetQueryInfo, GetStockInfo: services A, B and C."""

_LOOPBACK = "127.0.0.1"
_BACKLOG = 4096


class Services:
    """The services as the server knows them.

    Attributes:
        addresses: host and port of each, by name; empty where they could not be started.
        supervisor: their parent's pid; 0 without one.
        life: the descriptor that keeps them alive; a child of the server must close its copy. -1 without services.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self.supervisor = 0
        self.life = -1

    def start(self, settings: Settings, listener: Socket) -> None:
        """Start them; to be called before the process has threads.

        Args:
            settings: their latency.
            listener: the server's own, which the services must not hold open.

        Raises:
            OSError: the loopback interface is down, or there can be no further process.
        """
        doors = {name: _listen() for name in NAMES}
        life, self.life = os.pipe2(os.O_CLOEXEC)
        self.supervisor = os.fork()
        if not self.supervisor:
            _run_to_the_end(_supervise, doors, life, (self.life, listener.detach()), settings)
        os.close(life)
        self.addresses = {name: door.getsockname() for name, door in doors.items()}
        for door in doors.values():
            door.close()

    def stop(self) -> None:
        """End the services and wait for the end of their supervisor."""
        if self.life >= 0:
            os.close(self.life)
            self.life = -1
        if self.supervisor:
            try:
                os.waitpid(self.supervisor, 0)
            except ChildProcessError:
                return  # a server that waits for all its children has met this one too
            finally:
                self.supervisor = 0


def _run_to_the_end(work: Callable[..., None], *arguments: object) -> None:
    """Run the whole life of a forked process; nothing of what its parent meant to do may follow."""
    code = 1
    try:
        restore(SIGTERM)
        ignore(SIGINT)  # Ctrl-C goes to the whole group; the server drains and may still need its services
        work(*arguments)
        code = 0
    except Exception as error:
        sys.stderr.write(f"services: {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _listen() -> Socket:
    door = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC)
    door.bind((_LOOPBACK, 0))
    door.listen(_BACKLOG)
    return door


def _supervise(doors: dict[str, Socket], life: int, foreign: tuple[int, ...], settings: Settings) -> None:
    for descriptor in foreign:
        os.close(descriptor)
    _name_process("rpc")
    watch = poll()
    watch.register(life, POLLIN)
    for door in doors.values():
        watch.register(door.fileno(), POLLIN)
    if any(descriptor == life for descriptor, _ in watch.poll()):
        return
    ignore(SIGCHLD)  # the kernel reaps: nobody here asks how a service ended
    for name, door in doors.items():
        if not os.fork():
            for other in doors.values():
                if other is not door:
                    other.close()
            _run_to_the_end(_serve, name, door, life, settings)
    for door in doors.values():
        door.close()  # or a dead service's port would go on taking connections that nobody answers
    os.read(life, 1)
    try:
        os.wait()  # with SIGCHLD ignored it returns when the last child has ended, by failing (wait(2))
    except ChildProcessError:
        return


def _serve(name: str, door: Socket, life: int, settings: Settings) -> None:
    from workloads.rpc.service import serve

    _name_process(f"rpc-{name}")
    door.setblocking(False)
    serve(name, door, life, latency=settings.rpc_latency / 1000, spread=settings.rpc_spread / 1000)


def _name_process(name: str) -> None:
    """What ps shows, and `/stats` finds a service by (proc(5), /proc/pid/comm)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name)
    except OSError:
        return  # no /proc: it keeps its parent's name
