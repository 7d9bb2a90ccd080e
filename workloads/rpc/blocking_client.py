"""A client of the services whose calls block the thread."""

from __future__ import annotations

from _socket import AF_INET, IPPROTO_TCP, SO_RCVTIMEO, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY

from workloads.net import RECEIVE_BYTES, Socket, timeval
from workloads.rpc.wire import Decoder, RpcError, encode, reply_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.rpc.services import Services
    from workloads.rpc.wire import Message


class BlockingClient:
    """A thread-safe client that reuses connections; each call has a connection to itself."""

    def __init__(self, services: Services, timeout: float) -> None:
        self._addresses = services.addresses
        self._timeout = timeout
        self._idle: dict[str, list[Socket]] = {name: [] for name in services.addresses}

    def call(self, service: str, message: Message) -> Message:
        """Call a service and wait for its reply.

        Raises:
            RpcError: 502, 503 or 504.
        """
        if service not in self._addresses:
            raise RpcError(503, service, "is not running")
        request = encode(message)
        try:
            socket = self._idle[service].pop()  # list operations are atomic, so no lock is needed
        except IndexError:
            return self._exchange(self._connect(service), service, request)
        try:
            return self._exchange(socket, service, request)
        except RpcError as error:
            if error.status != 502:
                raise
        # The service may have closed a connection that was kept. Calls only read, so it is safe to call again (RFC
        # 9110, section 9.2.2, on idempotence).
        return self._exchange(self._connect(service), service, request)

    def _connect(self, service: str) -> Socket:
        socket = Socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(self._timeout))
            socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(self._timeout))  # also for connect(2) (socket(7))
            socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            socket.connect(self._addresses[service])
        except BlockingIOError:
            socket.close()
            raise RpcError(504, service, "did not answer in time") from None
        except OSError:
            socket.close()
            raise RpcError(503, service, "refuses connections") from None
        return socket

    def _exchange(self, socket: Socket, service: str, request: bytes) -> Message:
        decoder = Decoder()
        try:
            socket.sendall(request)
            while (reply := reply_of(service, decoder, socket.recv(RECEIVE_BYTES))) is None:
                continue
        except BlockingIOError:
            socket.close()
            raise RpcError(504, service, "did not answer in time") from None
        except OSError:
            socket.close()
            raise RpcError(502, service, "died before it answered") from None
        except RpcError:
            socket.close()
            raise
        self._idle[service].append(socket)
        return reply
