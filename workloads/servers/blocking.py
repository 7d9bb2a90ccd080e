"""Blocking: a fixed pool of threads, and each blocks at every call until its request is done.

A thread that takes a request keeps it to the end. At each call of a service it sits and waits, so a pool of N threads
has N requests under way at most, and the rest queue up while the processor idles: throughput is threads ÷ latency.
`callback` and `coroutine` lift that bound.
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
    """The main thread watches the clients who are silent; one who speaks is given to the next free thread."""
    hall = EventLoop()
    pool = Pool(app.settings.workers)

    def admit(socket: Socket, on_close: Callable[[Guest], None]) -> Guest:
        return Guest(hall, pool, BlockingConnection(socket, app), on_close)

    return Front(hall, app, listener, admit).run()


class Guest:
    """A client: in the hall while silent, with a thread of the pool from its first byte to the end of its answer."""

    def __init__(
        self, hall: EventLoop, pool: Pool, connection: BlockingConnection, on_close: Callable[[Guest], None]
    ) -> None:
        self._hall = hall
        self._pool = pool
        self._connection = connection
        self._on_close = on_close
        self._in_hall = True
        self._closed = False
        # Once it has spoken it is not watched (epoll_ctl(2)), until it is back in the hall.
        hall.register(connection.fileno(), EPOLLIN | EPOLLONESHOT, self._speaks)

    def _speaks(self, _event: int) -> None:
        self._in_hall = False
        self._pool.submit(self._serve)

    def _serve(self) -> None:
        """On a thread of the pool: read, handle, write, and block at each."""
        stays = self._connection.step()
        self._hall.post(self._back if stays else self.close)

    def _back(self) -> None:
        self._in_hall = True
        self._hall.modify(self._connection.fileno(), EPOLLIN | EPOLLONESHOT)

    def check_deadline(self, now: float) -> None:
        """Called about once a second."""
        if self._in_hall and self._connection.protocol.deadline < now:
            self._speaks(0)  # the thread sees by the clock what to do

    def drain(self) -> None:
        """Finish what has been received, and then close."""
        if self._in_hall:
            self._connection.hurry()

    def close(self) -> None:
        """Close now."""
        if not self._closed:
            self._closed = True
            self._hall.forget(self._connection.fileno())
            self._connection.close()
            self._on_close(self)
