"""A connection that blocks its thread: it waits for bytes, answers, and waits again (recv(2), send(2))."""

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
"""Seconds after which a blocked read checks its deadline. It is a socket option (SO_RCVTIMEO), because a timeout of
Python's would cost a poll(2) before each read."""
_TICK = timeval(TICK)


class BlockingConnection:
    """A connection whose methods `serve` and `step` block until the client sends something."""

    __slots__ = ("_app", "_socket", "protocol")

    def __init__(self, socket: Socket, app: Application) -> None:
        socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TICK)
        socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, app.send_timeout)
        self._socket = socket
        self._app = app
        self.protocol = app.open()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer requests until the connection ends, then close it."""
        try:
            while self.step():
                continue
        finally:
            self.close()

    def step(self) -> bool:
        """Wait for bytes and answer the requests that they complete. Returns False once the connection has ended."""
        try:
            data = self._receive()
            if data:
                self.protocol.feed(data)
            elif not self.protocol.closing:
                return False
            self._answer()
            if self.protocol.lingering:
                self._linger()
        except OSError:  # the client is gone, or does not read the response
            return False
        return not self.protocol.closing

    def stop_waiting(self) -> None:
        """End a read that waits for the next request; requests that have arrived are still answered. Thread-safe."""
        try:
            if self.protocol.idle:
                self._socket.shutdown(SHUT_RD)
        except OSError:
            return  # it has just ended by itself

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        self._app.closed(self.protocol)

    def _receive(self) -> bytes:
        """Return bytes from the client, or b"" if it has closed its side or its deadline has passed."""
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
                    self._flush()  # so that earlier responses do not wait for a long request
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
        """Discard what a refused client still sends, for a limited time: a reset would destroy our response."""
        self._socket.shutdown(SHUT_WR)
        until = monotonic() + self._app.limits.linger_time
        while monotonic() < until:
            try:
                if not self._socket.recv(RECEIVE_BYTES):
                    return
            except BlockingIOError:
                continue
