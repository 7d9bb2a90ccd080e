"""A read that does not block its thread: `/io?ms=N&nonblocking=1` on an event loop.

Like `blocking_read` in handlers.py, it reads from a socket to which nothing is written, until the time is over. There
the thread blocks in recvfrom(2). Here the socket and the time are registered with the loop, which goes on with other
clients. For the same in a coroutine, see `nonblocking_read` in servers/coroutine.py.
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
    """Start the read and return; `answer` is called with the response when it has ended."""
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
