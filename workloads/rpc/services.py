"""The services A, B and C: three TCP servers in separate processes, in the same sandbox as the server.

Their supervisor is forked before the server has threads, and forks the services at the first call: until then, they
cost one fork. They end when the server does, as the server holds the other end of a pipe that they watch.
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
    """The server's handle on the services.

    Attributes:
        addresses: host and port of each service, by name; empty if they could not be started.
        supervisor: pid of their parent process; 0 if there is none.
        life: the descriptor that keeps them alive, -1 if there are none; a child of the server must close its copy.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self.supervisor = 0
        self.life = -1

    def start(self, settings: Settings, listener: Socket) -> None:
        """Start the services. Must be called before the process has threads.

        Args:
            settings: has the latency of the services.
            listener: the server's listening socket, which the services must not keep open.

        Raises:
            OSError: the loopback interface is down, or no further process can be created.
        """
        listeners = {name: _listen() for name in NAMES}
        life, self.life = os.pipe2(os.O_CLOEXEC)
        self.supervisor = os.fork()
        if not self.supervisor:
            _run_to_the_end(_supervise, listeners, life, (self.life, listener.detach()), settings)
        os.close(life)
        self.addresses = {name: socket.getsockname() for name, socket in listeners.items()}
        for socket in listeners.values():
            socket.close()

    def stop(self) -> None:
        """End the services and wait for their supervisor."""
        if self.life >= 0:
            os.close(self.life)
            self.life = -1
        if self.supervisor:
            try:
                os.waitpid(self.supervisor, 0)
            except ChildProcessError:
                return  # a server that reaps all its children has reaped this one
            finally:
                self.supervisor = 0


def _run_to_the_end(work: Callable[..., None], *arguments: object) -> None:
    """Run a function in a forked process, then exit without the parent's cleanup."""
    code = 1
    try:
        restore(SIGTERM)
        ignore(SIGINT)  # Ctrl-C goes to the whole process group, but the server needs its services while it drains
        work(*arguments)
        code = 0
    except Exception as error:
        sys.stderr.write(f"services: {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _listen() -> Socket:
    listener = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC)
    listener.bind((_LOOPBACK, 0))
    listener.listen(_BACKLOG)
    return listener


def _supervise(listeners: dict[str, Socket], life: int, foreign: tuple[int, ...], settings: Settings) -> None:
    for descriptor in foreign:
        os.close(descriptor)
    _name_process("rpc")
    watch = poll()
    watch.register(life, POLLIN)
    for listener in listeners.values():
        watch.register(listener.fileno(), POLLIN)
    if any(descriptor == life for descriptor, _ in watch.poll()):
        return
    ignore(SIGCHLD)  # the kernel reaps the services; their exit codes are not needed
    for name, listener in listeners.items():
        if not os.fork():
            for other in listeners.values():
                if other is not listener:
                    other.close()
            _run_to_the_end(_serve, name, listener, life, settings)
    for listener in listeners.values():
        listener.close()  # otherwise the port of a dead service would still accept connections
    os.read(life, 1)
    try:
        os.wait()  # with SIGCHLD ignored, it fails when the last child has ended (wait(2))
    except ChildProcessError:
        return


def _serve(name: str, listener: Socket, life: int, settings: Settings) -> None:
    from workloads.rpc.service import serve

    _name_process(f"rpc-{name}")
    listener.setblocking(False)
    serve(name, listener, life, latency=settings.rpc_latency / 1000, spread=settings.rpc_spread / 1000)


def _name_process(name: str) -> None:
    """Set the name of this process, by which `/stats` recognises services (proc(5), /proc/pid/comm)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name)
    except OSError:
        return  # without /proc, the parent's name is kept
