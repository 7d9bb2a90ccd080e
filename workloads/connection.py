"""A connection on an event loop: it moves bytes between a non-blocking socket and the protocol, without waiting."""

from __future__ import annotations

from _socket import SHUT_WR
from select import EPOLLIN, EPOLLOUT
from time import monotonic

from workloads.net import RECEIVE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.application import Application
    from workloads.http.request import Request
    from workloads.http.response import Response
    from workloads.loop import EventLoop
    from workloads.net import Socket

    OnRequest = Callable[["Connection", Request], None]
    OnClose = Callable[["Connection"], None]


class Connection:
    """Calls `on_request` for each request; the response is given to `respond`, at once or later, on the loop's thread.

    While a request is being served, or the client does not read its responses, nothing more is read: the kernel's
    buffers fill, and TCP slows the client down. This bounds the memory of a connection.
    """

    __slots__ = (
        "_app", "_closed", "_descriptor", "_events", "_loop", "_on_close", "_on_request", "_pumping", "_shut",
        "_socket", "_stuck_since", "protocol",
    )  # fmt: skip

    def __init__(
        self, loop: EventLoop, socket: Socket, app: Application, on_request: OnRequest, on_close: OnClose
    ) -> None:
        socket.setblocking(False)
        self._loop = loop
        self._socket = socket
        self._descriptor = socket.fileno()
        self._app = app
        self._on_request = on_request
        self._on_close = on_close
        self._pumping = False
        self._closed = False
        self._shut = False  # nothing more will be sent; further input is discarded
        self._events = EPOLLIN
        self._stuck_since = 0.0
        self.protocol = app.open()
        loop.register(self._descriptor, EPOLLIN, self.handle)

    def handle(self, events: int) -> None:
        """Handle an event: the socket is readable, writable or broken."""
        if self._events & EPOLLOUT:
            self._flush()
            if not self.protocol.output:
                self._pump()
        elif self.protocol.closing:
            self._discard()
        elif self._events:
            self._receive()
        elif events & ~(EPOLLIN | EPOLLOUT):
            self.close()  # broken while its request is being served: nobody will read the response

    def respond(self, request: Request, response: Response) -> None:
        """Send the response to a request, unless the client has left in the meantime."""
        if self._closed:
            return
        self.protocol.respond(request, response)
        if not self._pumping:
            self._pump()

    def check_deadline(self, now: float) -> None:
        """Close the connection if its deadline has passed. Called about once a second."""
        protocol = self.protocol
        if protocol.output:
            if now - self._stuck_since > self._app.limits.idle_time:
                self.close()
        elif protocol.deadline < now:
            if protocol.closing:  # it has lingered long enough
                self.close()
            else:
                protocol.expire()
                self._pump()

    def drain(self) -> None:
        """Answer the requests that have been received, then close."""
        if self._events == EPOLLIN and not self.protocol.closing:
            self._receive()
            if not self._closed and self.protocol.idle:
                self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._closed:
            return
        self._loop.forget(self._descriptor)
        self._socket.close()
        self._closed = True
        self._app.closed(self.protocol)
        self._on_close(self)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self.protocol.feed(data)
            self._pump()
        else:
            self.close()

    def _pump(self) -> None:
        """Pass on requests and send responses, as far as possible without waiting."""
        protocol = self.protocol
        while True:
            self._pumping = True
            while (request := protocol.next_request()) is not None:
                self._on_request(self, request)
            self._pumping = False
            if not protocol.output:
                break
            self._flush()
            if self._closed:
                return
            if protocol.output or protocol.busy or protocol.closing or not protocol.pending:
                break
        self._watch()

    def _flush(self) -> None:
        protocol = self.protocol
        output = protocol.output
        try:
            sent = self._socket.send(output)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent == len(output):
            protocol.output = b""
            self._stuck_since = 0.0
        else:
            protocol.output = output[sent:]
            if sent or not self._stuck_since:
                self._stuck_since = self._loop.now

    def _watch(self) -> None:
        """Watch for the event that is needed next; close the connection if there is none."""
        protocol = self.protocol
        if protocol.output:
            events = EPOLLOUT
        elif protocol.closing:
            if not protocol.lingering:
                self.close()
                return
            self._start_lingering()
            events = EPOLLIN
        else:
            events = 0 if protocol.busy else EPOLLIN
        if events != self._events:
            self._events = events
            self._loop.modify(self._descriptor, events)

    def _start_lingering(self) -> None:
        if self._shut:
            return
        self._shut = True
        self.protocol.deadline = monotonic() + self._app.limits.linger_time
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            self.protocol.deadline = 0.0  # the client is gone: the next check closes the connection

    def _discard(self) -> None:
        try:
            if not self._socket.recv(RECEIVE_BYTES):
                self.close()
        except BlockingIOError:
            return
        except OSError:
            self.close()
