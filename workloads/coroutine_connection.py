"""A connection served by a coroutine: the code looks like blocking code, but only the coroutine waits."""

from __future__ import annotations

from _socket import SHUT_RD, SHUT_WR
from time import monotonic

from workloads.scheduler import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from workloads.application import Application
    from workloads.http.request import Request
    from workloads.http.response import Response
    from workloads.net import Socket
    from workloads.scheduler import Scheduler

    Handler = Callable[[Request], Awaitable[Response]]
    OnClose = Callable[["CoroutineConnection"], None]


class CoroutineConnection:
    """A connection of the coroutine server."""

    __slots__ = ("_app", "_on_close", "_socket", "protocol")

    def __init__(self, socket: Socket, app: Application, on_close: OnClose) -> None:
        self._on_close = on_close
        self._socket = socket
        self._app = app
        self.protocol = app.open()

    async def serve(self, scheduler: Scheduler, handler: Handler) -> None:
        """Answer requests until the connection ends, then close it."""
        protocol = self.protocol
        stream = Stream(scheduler, self._socket)
        patience = self._app.limits.idle_time
        try:
            while not protocol.closing:
                stream.deadline = protocol.deadline
                try:
                    data = await stream.read()
                    if not data:
                        break
                    protocol.feed(data)
                except TimeoutError:
                    protocol.expire()
                while True:  # usually once: pipelined requests wait until there is room for their responses
                    while (request := protocol.next_request()) is not None:
                        protocol.respond(request, await handler(request))
                    if not protocol.output:
                        break
                    output, protocol.output = protocol.output, b""
                    await stream.write(output, patience)
            if protocol.lingering:
                await self._linger(stream)
        except OSError:  # the client is gone, or does not read its responses (TimeoutError is an OSError)
            return
        finally:
            stream.close()
            self._app.closed(protocol)
            self._on_close(self)

    def stop_waiting(self) -> None:
        """End a read that waits for the next request; requests that have arrived are still answered. Thread-safe."""
        try:
            if self.protocol.idle:
                self._socket.shutdown(SHUT_RD)
        except OSError:
            return  # it has just ended by itself

    async def _linger(self, stream: Stream) -> None:
        """Discard what a refused client still sends, for a limited time: a reset would destroy our response."""
        self._socket.shutdown(SHUT_WR)
        stream.deadline = monotonic() + self._app.limits.linger_time
        while await stream.read():
            continue
