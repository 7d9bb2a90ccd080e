"""A client of the services for coroutines: only the calling coroutine waits."""

from __future__ import annotations

import errno
from _socket import AF_INET, IPPROTO_TCP, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY
from select import EPOLLOUT

from workloads.net import Socket
from workloads.rpc.wire import Decoder, RpcError, encode, reply_of
from workloads.scheduler import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.rpc.services import Services
    from workloads.rpc.wire import Message
    from workloads.scheduler import Scheduler


class CoroutineClient:
    """A client that reuses connections; each scheduler has its own."""

    def __init__(self, scheduler: Scheduler, services: Services, timeout: float) -> None:
        self._scheduler = scheduler
        self._addresses = services.addresses
        self._timeout = timeout
        self._idle: dict[str, list[Stream]] = {name: [] for name in services.addresses}

    async def call(self, service: str, message: Message) -> Message:
        """Call a service and wait for its reply.

        Raises:
            RpcError: 502, 503 or 504.
        """
        if service not in self._addresses:
            raise RpcError(503, service, "is not running")
        request = encode(message)
        idle = self._idle[service]
        if idle:
            try:
                return await self._exchange(idle.pop(), service, request)
            except RpcError as error:
                if error.status != 502:
                    raise
        # No connection was kept, or the service has closed it. Calls only read, so it is safe to call again.
        return await self._exchange(await self._connect(service), service, request)

    async def _connect(self, service: str) -> Stream:
        socket = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        if socket.connect_ex(self._addresses[service]) not in (0, errno.EINPROGRESS):
            socket.close()
            raise RpcError(503, service, "refuses connections")
        stream = Stream(self._scheduler, socket, EPOLLOUT)
        try:
            stream.expire_after(self._timeout)
            await stream.writable()
        except TimeoutError:
            stream.close()
            raise RpcError(504, service, "did not answer in time") from None
        if socket.getsockopt(SOL_SOCKET, SO_ERROR):
            stream.close()
            raise RpcError(503, service, "refuses connections")
        return stream

    async def _exchange(self, stream: Stream, service: str, request: bytes) -> Message:
        decoder = Decoder()
        try:
            stream.expire_after(self._timeout)
            await stream.write(request)
            while (reply := reply_of(service, decoder, await stream.read())) is None:
                continue
        except TimeoutError:
            stream.close()
            raise RpcError(504, service, "did not answer in time") from None
        except OSError:
            stream.close()
            raise RpcError(502, service, "died before it answered") from None
        except RpcError:
            stream.close()
            raise
        stream.deadline = float("inf")
        self._idle[service].append(stream)
        return reply
