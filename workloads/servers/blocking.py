"""Blocking: a fixed pool of threads, each of which blocks at every call of a service.

A thread that takes a request keeps it to the end, and is blocked at each call of a service. So a pool of N threads has
at most N requests under way, and the others wait in the queue while the processor is idle: throughput is threads ÷
latency. `callback` and `coroutine` do not have this bound.
"""

from __future__ import annotations

from select import EPOLLIN, EPOLLONESHOT

from workloads.blocking_connection import BlockingConnection
from workloads.front import Front
from workloads.loop import EventLoop
from workloads.pool import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.application import Application
    from workloads.net import Socket

SECTION = "2.8.8"

PICTURE = """
 requests    queue     N threads
                      +----------------------------------------------------+
  o o o o -> ||||| -> | 1: A B [user . . .] C D [query . . .] E F [stock . |
                      | 2: A B [user . . .] C D [query . .                 |
                      | N: A B [user . .        (. = blocked, CPU idle)    |
                      +----------------------------------------------------+
"""


def serve(app: Application, listener: Socket) -> bool:
    """Watch idle connections on the main thread, and pass each one that becomes readable to the pool."""
    loop = EventLoop()
    pool = Pool(app.settings.workers)

    def admit(socket: Socket, on_close: Callable[[PooledConnection], None]) -> PooledConnection:
        return PooledConnection(loop, pool, BlockingConnection(socket, app), on_close)

    return Front(loop, app, listener, admit).run()


class PooledConnection:
    """A connection that is watched by the loop while idle, and served by a thread of the pool otherwise."""

    def __init__(
        self, loop: EventLoop, pool: Pool, connection: BlockingConnection, on_close: Callable[[PooledConnection], None]
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._connection = connection
        self._on_close = on_close
        self._idle = True
        self._closed = False
        # EPOLLONESHOT: after an event it is not watched until `modify` is called (epoll_ctl(2)).
        loop.register(connection.fileno(), EPOLLIN | EPOLLONESHOT, self._readable)

    def _readable(self, _event: int) -> None:
        self._idle = False
        self._pool.submit(self._serve)

    def _serve(self) -> None:
        """Read, handle and write, on a thread of the pool; each may block."""
        remains = self._connection.step()
        self._loop.post(self._watch_again if remains else self.close)

    def _watch_again(self) -> None:
        self._idle = True
        self._loop.modify(self._connection.fileno(), EPOLLIN | EPOLLONESHOT)

    def check_deadline(self, now: float) -> None:
        """Close the connection if its deadline has passed. Called about once a second."""
        if self._idle and self._connection.protocol.deadline < now:
            self._readable(0)  # the thread finds that the deadline has passed

    def drain(self) -> None:
        """Answer the requests that have been received, then close."""
        if self._idle:
            self._connection.stop_waiting()

    def close(self) -> None:
        """Close the connection."""
        if not self._closed:
            self._closed = True
            self._loop.forget(self._connection.fileno())
            self._connection.close()
            self._on_close(self)
