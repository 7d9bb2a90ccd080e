"""One connection's side of the conversation, without a socket: the same for every model of concurrency.

A server feeds it what it received, takes requests out, puts responses in, and sends what is in `output`. Requests come
one at a time and in order, so the responses to pipelined requests are in order by construction.
"""

from __future__ import annotations

from time import monotonic

from workloads.http.chunked import ChunkedDecoder
from workloads.http.head import BAD_LINE, HeadParser
from workloads.http.request import STREAM, HttpError, Request, find_route
from workloads.http.response import CONTINUE, LAST_CHUNK, Response, encode, encode_stream_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.http.request import Routes
    from workloads.settings import Settings

MAX_LINE = 8192
"""Bytes of a request line; longer is 414 (RFC 9112, section 3, asks for 8000 at least)."""
MAX_HEAD = 16384
"""Bytes of a head; longer is 431."""
HIGH_WATER = 262144
"""Bytes of output that wait for the client; with more, no further request is taken and nothing is read."""
NEVER = float("inf")


class Shared:
    """What the connections of a server have in common; the server sets it."""

    limits: Settings
    routes: Routes
    keeps_alive: bool  # False once every response has to end its connection
    place: memoryview | None  # in a child of a server that forks: where it counts its requests


class Protocol:
    """The state of one connection.

    Attributes:
        output: bytes to send; the server takes from its front.
        closing: close the connection once the output is sent.
        lingering: what the client still sends has to be read away before the close (RFC 9112, section 9.6).
        busy: a request has been taken out and its response is not in yet.
        deadline: when `expire` is due, on the monotonic clock.
        requests: answered so far.
    """

    __slots__ = (
        "_app", "_buffer", "_chunks", "_keep_alive", "_left", "_parser", "_pieces", "_position", "_request", "_size",
        "_skipped", "_streaming", "busy", "closing", "deadline", "lingering", "output", "requests",
    )  # fmt: skip

    def __init__(self, app: Shared) -> None:
        self._app = app
        self._parser = HeadParser()
        self._buffer = b""
        self._position = 0  # in the buffer, of the first byte not used yet
        self._skipped = False  # the one empty line before a request line that is forgiven (RFC 9112, section 2.2)
        self._request: Request | None = None  # the one whose body is coming in
        self._chunks: ChunkedDecoder | None = None
        self._left = 0  # bytes of a sized body still to come
        self._pieces: list[bytes] = []
        self._size = 0  # bytes of the collected body so far
        self._streaming = False  # the head of a streamed response has been written
        self._keep_alive = True
        self.output = b""
        self.busy = False
        self.closing = False
        self.lingering = False
        self.deadline = monotonic() + app.limits.header_time
        self.requests = 0

    @property
    def idle(self) -> bool:
        """Between requests: nothing received that is not answered, nothing to send."""
        return not self.busy and self._request is None and not self._buffer and not self.output

    @property
    def pending(self) -> bool:
        """Bytes have been received that are not used yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes from the network."""
        if self.closing:
            return
        if self._buffer:
            self._buffer = self._buffer[self._position :] + data
        else:
            self._buffer = data
            if self._request is None:
                self.deadline = monotonic() + self._app.limits.header_time
        self._position = 0

    def next_request(self) -> Request | None:
        """The next complete request, or None if more bytes, or room in the output, are needed first."""
        while self._buffer and not self.busy and not self.closing and len(self.output) <= HIGH_WATER:
            request = self._request
            try:
                if request is None:
                    request = self._head()
                    if request is None:
                        return None
                    if request.length or request.chunked:
                        self._start_body(request)
                        continue
                elif not self._body(request):
                    continue
            except HttpError as error:
                self._refuse(error)
                return None
            except _Answered:
                continue
            if request.route.kind == STREAM:
                self._end_stream(request)
                continue
            self.busy = True
            self.deadline = NEVER
            return request
        return None

    def respond(self, request: Request, response: Response) -> None:
        """Write the response to the request that `next_request` gave last."""
        keep_alive = self._keeps_alive(request)
        self.output += encode(response, keep_alive=keep_alive, minor=request.minor, with_body=request.method != b"HEAD")
        self._finished(keep_alive)

    def release(self) -> None:
        """The connection has ended."""
        self._parser.release()

    def expire(self) -> None:
        """The deadline has passed: say 408 to a client in the middle of a request, close in any case."""
        if (self._buffer or self._request is not None) and not self.closing:
            self._refuse(HttpError(408, "the request took too long to arrive"))
        self.closing = True

    def _head(self) -> Request | None:
        """Parse a head if it is complete, and find its route."""
        buffer = self._buffer
        position = self._position
        if not self._skipped and buffer.startswith(b"\r\n", position):
            self._skipped = True
            self._position = position = position + 2
        end = buffer.find(b"\r\n\r\n", position) + 4
        if end == 3 or end - position > MAX_LINE:
            _check_prefix(buffer[position : position + MAX_HEAD + 1 if end == 3 else min(end, position + MAX_HEAD + 1)])
            if end == 3:
                if position == len(buffer):
                    self._buffer = b""
                    self._position = 0
                return None
        request = self._parser.parse(buffer[position:end])
        self._skipped = False
        if end == len(buffer):
            self._buffer = b""
            self._position = 0
        else:
            self._position = end
        self._find_route(request)
        return request

    def _find_route(self, request: Request) -> None:
        try:
            expect = request.headers.get(b"expect")
            if expect is not None and expect.lower() != b"100-continue":
                raise HttpError(417, "the only expectation known here is 100-continue")
            request.route = find_route(self._app.routes, request)
            if request.route.kind != STREAM and (request.length or 0) > self._app.limits.max_body:
                raise HttpError(413, f"a body here has at most {self._app.limits.max_body} bytes")
        except HttpError as error:
            if request.length or request.chunked:
                raise  # a body that nobody wants is on its way: the connection has to end
            self.respond(request, error_response(error))
            raise _Answered from None

    def _start_body(self, request: Request) -> None:
        self._request = request
        self._left = request.length or 0
        self._chunks = ChunkedDecoder() if request.chunked else None
        self.deadline = monotonic() + self._app.limits.body_time
        if not self._buffer and request.minor and b"expect" in request.headers:
            self.output += CONTINUE

    def _body(self, request: Request) -> bool:
        """Use what is in the buffer for the body; whether the body is complete."""
        data = self._buffer[self._position :] if self._position else self._buffer
        if self._chunks is not None:
            piece = self._chunks.feed(data)
            done = self._chunks.done
            self._buffer = self._chunks.rest if done else b""
        else:
            piece = data[: self._left]
            self._left -= len(piece)
            done = not self._left
            self._buffer = data[len(piece) :]
        self._position = 0
        if request.route.kind == STREAM:
            self._stream(request, piece)
        else:
            self._size += len(piece)
            if self._size > self._app.limits.max_body:
                raise HttpError(413, f"a body here has at most {self._app.limits.max_body} bytes")
            self._pieces.append(piece)
        if done:
            request.body = b"".join(self._pieces)
            self._pieces = []
            self._size = 0
            self._request = self._chunks = None
        return done

    def _stream(self, request: Request, piece: bytes) -> None:
        """Send a piece of the body back. The limit of time is on the silence here, not on the whole body."""
        if not piece:
            return
        self.deadline = monotonic() + self._app.limits.body_time
        if not self._streaming:
            self._start_stream(request)
        self.output += piece if request.length is not None else b"%x\r\n%s\r\n" % (len(piece), piece)

    def _start_stream(self, request: Request) -> None:
        self._streaming = True
        self._keep_alive = self._keeps_alive(request)
        self.output += encode_stream_head(length=request.length, keep_alive=self._keep_alive, minor=request.minor)

    def _end_stream(self, request: Request) -> None:
        if not self._streaming:
            self._start_stream(request)
        if request.length is None:
            self.output += LAST_CHUNK
        self._streaming = False
        self._finished(self._keep_alive)

    def _keeps_alive(self, request: Request) -> bool:
        return request.keep_alive and self._app.keeps_alive

    def _finished(self, keep_alive: bool) -> None:
        limits = self._app.limits
        self.busy = False
        self.requests += 1
        if self._app.place is not None:
            self._app.place[0] += 1
        self.deadline = monotonic() + (limits.header_time if self._buffer else limits.idle_time)
        if not keep_alive:
            self.closing = True
            self.lingering = bool(self._buffer)
            self._buffer = b""

    def _refuse(self, error: HttpError) -> None:
        """Answer what is wrong with the request and end the connection: where the next one starts is not known."""
        if not self._streaming:  # else the broken-off body itself tells the client
            self.output += encode(error_response(error), keep_alive=False, minor=1)
            self.requests += 1
            if self._app.place is not None:
                self._app.place[0] += 1
        self._buffer = b""
        self._request = self._chunks = None
        self._pieces = []
        self.closing = True
        self.lingering = True
        self.deadline = monotonic() + self._app.limits.linger_time


class _Answered(Exception):  # noqa: N818 - not an error: the request was answered without a handler
    pass


def error_response(error: HttpError) -> Response:
    """The response that tells a client of an error."""
    return Response(error.detail.encode("utf-8") + b"\n", error.status, fields=error.fields)


def _check_prefix(head: bytes) -> None:
    """Refuse a head for what its first bytes show, so that it does not matter in which fragments they came.

    Raises:
        HttpError: 400, a bare LF; 414 or 431, too long; whichever is met first.
    """
    bare = -1
    if head.count(b"\n") != head.count(b"\r\n"):
        bare = head.find(b"\n")
        while bare > 0 and head[bare - 1] == 13:
            bare = head.find(b"\n", bare + 1)
    line = head.find(b"\r\n", 0, MAX_LINE + 2)
    if line < 0 and len(head) >= MAX_LINE + 2 and not 0 <= bare < MAX_LINE + 2:
        raise HttpError(414, f"a request line has at most {MAX_LINE} bytes")
    if bare >= 0:
        raise HttpError(400, BAD_LINE)
    if len(head) > MAX_HEAD:
        raise HttpError(431, f"a head has at most {MAX_HEAD} bytes")
