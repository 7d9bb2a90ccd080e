"""A client of the services for an event loop: a call returns at once, and the reply is passed to a callback."""

from __future__ import annotations

import errno
from _socket import AF_INET, IPPROTO_TCP, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY
from select import EPOLLIN, EPOLLOUT

from workloads.net import RECEIVE_BYTES, Socket
from workloads.rpc.wire import Decoder, RpcError, encode, reply_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.loop import EventLoop
    from workloads.rpc.services import Services
    from workloads.rpc.wire import Message

    OnReply = Callable[[Message], None]
    OnError = Callable[[RpcError], None]


class CallbackClient:
    """A client that reuses connections; it is used on the loop's thread only."""

    def __init__(self, loop: EventLoop, services: Services, timeout: float) -> None:
        self._loop = loop
        self._addresses = services.addresses
        self._timeout = timeout
        self._idle: dict[str, list[_Link]] = {name: [] for name in services.addresses}

    def call(self, service: str, message: Message, on_reply: OnReply, on_error: OnError) -> None:
        """Call a service. Later, either `on_reply` or `on_error` is called, the latter with status 502, 503 or 504."""
        if service not in self._addresses:
            error = RpcError(503, service, "is not running")
            self._loop.post(lambda: on_error(error))
            return
        request = encode(message)
        idle = self._idle[service]

        def again(error: RpcError) -> None:
            # The service may have closed a connection that was kept. Calls only read, so it is safe to call again.
            if error.status != 502:
                on_error(error)
            else:
                self._connect(service).exchange(request, on_reply, on_error)

        if idle:
            idle.pop().exchange(request, on_reply, again)
        else:
            self._connect(service).exchange(request, on_reply, on_error)

    def _connect(self, service: str) -> _Link:
        return _Link(self._loop, service, self._addresses[service], self._timeout, self._idle[service])


class _Link:
    """A connection to a service, with one call at a time."""

    def __init__(
        self, loop: EventLoop, service: str, address: tuple[str, int], timeout: float, idle: list[_Link]
    ) -> None:
        self._loop = loop
        self._service = service
        self._timeout = timeout
        self._idle = idle
        self._call = 0  # number of the current call, by which a timer knows whether its call has ended
        self._request = b""
        self._on_reply: OnReply | None = None
        self._on_error: OnError | None = None
        self._decoder = Decoder()
        self._socket = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        self._socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        status = self._socket.connect_ex(address)
        self._refused = status not in (0, errno.EINPROGRESS)
        self._connected = False
        loop.register(self._socket, EPOLLOUT, self._handle)

    def exchange(self, request: bytes, on_reply: OnReply, on_error: OnError) -> None:
        """Send a request; one of the callbacks is called later."""
        self._request, self._on_reply, self._on_error = request, on_reply, on_error
        self._call += 1
        call = self._call
        self._loop.call_at(self._loop.now + self._timeout, lambda: self._expire(call))
        if self._connected:
            self._send()

    def _handle(self, _event: int) -> None:
        if not self._connected:
            if self._refused or self._socket.getsockopt(SOL_SOCKET, SO_ERROR):
                self._fail(503, "refuses connections")
                return
            self._connected = True
            self._loop.modify(self._socket.fileno(), EPOLLIN)
            self._send()
            return
        try:
            data = self._socket.recv(RECEIVE_BYTES)
            if self._on_reply is None:  # no call is under way: closed by the service, or an unexpected message
                self._close()
                return
            reply = reply_of(self._service, self._decoder, data)
        except BlockingIOError:
            return
        except OSError:
            self._fail(502, "died before it answered")
        except RpcError as error:
            self._finish_with(error)
        else:
            if reply is not None:
                self._finish(reply)

    def _send(self) -> None:
        try:
            self._socket.send(self._request)  # never partial: a message is far smaller than the socket's buffer
        except OSError:
            self._fail(502, "died before it answered")

    def _finish(self, reply: Message) -> None:
        on_reply, self._on_reply, self._on_error = self._on_reply, None, None
        self._call += 1
        self._idle.append(self)
        if on_reply is not None:
            on_reply(reply)

    def _expire(self, call: int) -> None:
        if call == self._call:
            self._fail(504, "did not answer in time")

    def _fail(self, status: int, detail: str) -> None:
        self._finish_with(RpcError(status, self._service, detail))

    def _finish_with(self, error: RpcError) -> None:
        on_error, self._on_reply, self._on_error = self._on_error, None, None
        self._close()
        if on_error is not None:
            on_error(error)

    def _close(self) -> None:
        self._call += 1
        if self in self._idle:
            self._idle.remove(self)
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
