"""A connection on a thread of its own: it waits for bytes, answers, and waits again (recv(2), send(2))."""

from __future__ import annotations

from _socket import SHUT_RD, SHUT_WR, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET
from time import monotonic

from workloads.http.request import SHORT
from workloads.net import RECEIVE_BYTES, timeval

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.net import Socket

TICK = 1.0
"""Seconds after which a waiting read looks at its deadline. The kernel keeps the time: a Python timeout would cost a
poll(2) before each read."""
_TICK = timeval(TICK)


class BlockingConnection:
    """Whoever calls `serve` or `step` is blocked until the client has sent something."""

    __slots__ = ("_app", "_socket", "protocol")

    def __init__(self, socket: Socket, app: Application) -> None:
        socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TICK)
        socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, app.send_timeout)
        self._socket = socket
        self._app = app
        self.protocol = app.open()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer requests until the connection ends, and close it."""
        try:
            while self.step():
                continue
        finally:
            self.close()

    def step(self) -> bool:
        """Wait for bytes and answer the requests that they complete; False once the connection is over."""
        try:
            data = self._receive()
            if data:
                self.protocol.feed(data)
            elif not self.protocol.closing:
                return False
            self._answer()
            if self.protocol.lingering:
                self._linger()
        except OSError:  # the client has gone, or does not take its output
            return False
        return not self.protocol.closing

    def hurry(self) -> None:
        """End a read that waits for the next request; what has arrived is still answered. Any thread may call it."""
        try:
            if self.protocol.idle:
                self._socket.shutdown(SHUT_RD)
        except OSError:
            return  # it ended by itself in this moment

    def close(self) -> None:
        """Close now."""
        self._socket.close()
        self._app.closed(self.protocol)

    def _receive(self) -> bytes:
        """Bytes from the client; none if it has ended its side, or its time is up."""
        protocol = self.protocol
        while True:
            if protocol.deadline < monotonic():
                protocol.expire()
                return b""
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                if not self._app.keeps_alive and protocol.idle:
                    return b""

    def _answer(self) -> None:
        protocol = self.protocol
        while True:
            while (request := protocol.next_request()) is not None:
                if protocol.output and request.route.kind != SHORT:
                    self._flush()  # the answers before a long one do not wait for it
                protocol.respond(request, self._app.answer(request))
            waiting = bool(protocol.output)
            self._flush()
            if not waiting or not protocol.pending:
                return

    def _flush(self) -> None:
        output, self.protocol.output = self.protocol.output, b""
        sent = 0
        while sent < len(output):
            sent += self._socket.send(output[sent:] if sent else output)

    def _linger(self) -> None:
        """Read away what a refused client still sends, for a while: a reset would take our answer from it."""
        self._socket.shutdown(SHUT_WR)
        until = monotonic() + self._app.limits.linger_time
        while monotonic() < until:
            try:
                if not self._socket.recv(RECEIVE_BYTES):
                    return
            except BlockingIOError:
                continue
