"""A read that blocks nobody: `/io?ms=N&nonblocking=1` on an event loop.

It is the read of `blocking_read` in handlers.py: from a socket that nobody writes to, until the time is over. There the
thread waits, in recvfrom(2). Here the loop is told of the socket and of the time, and goes on with other clients. How
it looks in a coroutine, see `nonblocking_read` in servers/coroutine.py.
"""

from __future__ import annotations

from _socket import socketpair
from select import EPOLLIN
from time import monotonic

from workloads.application import failure
from workloads.handlers import io_response, io_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.http.request import Request
    from workloads.http.response import Response
    from workloads.loop import EventLoop


def begin_read(loop: EventLoop, request: Request, answer: Callable[[Response], None]) -> None:
    """Begin the read and return; `answer` is called when it is over."""
    try:
        milliseconds = io_time(request)
        ours, theirs = socketpair()
    except Exception as error:
        answer(failure(request, error))
        return

    def over(_event: int = 0) -> None:
        loop.forget(ours.fileno())
        ours.close()
        theirs.close()
        answer(io_response(milliseconds))

    ours.setblocking(False)
    loop.register(ours, EPOLLIN, over)
    loop.call_at(monotonic() + milliseconds / 1000, over)
