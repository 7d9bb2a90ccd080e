"""The server of one service: an event loop that replies to each call after a latency."""

from __future__ import annotations

from _random import Random
from select import EPOLLIN

from workloads.loop import EventLoop
from workloads.net import RECEIVE_BYTES, Acceptor, Socket
from workloads.rpc.wire import Decoder, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.rpc.wire import Message


def contribution(service: str, call: Message) -> Message:
    """Return the reply of a service to a call. It is invented, but always the same, so that it can be checked.

    Raises:
        KeyError, TypeError: the call lacks a field that the service needs.
    """
    if service == "user":
        user = int(call["user"])
        return {"user": user, "name": f"user-{user}", "group": user % 7}
    if service == "query":
        return {"name": str(call["name"]), "item": int(call["group"]) * 100 + 1}
    return {"item": int(call["item"]), "in_stock": int(call["item"]) % 13}


def serve(name: str, listener: Socket, life: int, *, latency: float, spread: float) -> None:
    """Serve until the other end of the pipe `life` is closed. Latency and spread are in seconds."""
    loop = EventLoop()
    acceptor = Acceptor(listener)
    chance = Random()

    def accept(_event: int) -> None:
        while (socket := acceptor.accept()) is not None:
            _Caller(loop, socket, name, lambda: max(0.0, latency + spread * (2 * chance.random() - 1)))

    loop.register(listener, EPOLLIN, accept)
    loop.register(life, EPOLLIN, lambda _event: loop.stop())
    loop.run()


class _Caller:
    """A connection of a client, with one call at a time."""

    def __init__(self, loop: EventLoop, socket: Socket, service: str, delay: object) -> None:
        socket.setblocking(False)
        self._loop = loop
        self._socket = socket
        self._service = service
        self._delay = delay
        self._decoder = Decoder()
        loop.register(socket, EPOLLIN, self._handle)

    def _handle(self, _event: int) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
            call = self._decoder.feed(data) if data else None
            if call is not None:
                reply = encode(contribution(self._service, call))
                delay = self._delay()  # type: ignore[operator]
                if delay:
                    self._loop.call_at(self._loop.now + delay, lambda: self._answer(reply))
                else:
                    self._answer(reply)
            elif not data:
                self._close()
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            self._close()  # the caller is gone, or does not speak this protocol

    def _answer(self, reply: bytes) -> None:
        try:
            self._socket.send(reply)  # never partial: a message is far smaller than the socket's buffer
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
