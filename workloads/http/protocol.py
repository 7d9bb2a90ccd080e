"""The server's side of HTTP/1.1 on one connection, without a socket: the same for every concurrency model.

A server feeds it the bytes it receives, takes requests out, puts responses in, and sends `output`. There is one request
at a time, so the responses to pipelined requests are in order.
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
"""Maximum bytes of a request line; a longer one gets 414 (RFC 9112, section 3, requires at least 8000)."""
MAX_HEAD = 16384
"""Maximum bytes of a head; a longer one gets 431."""
HIGH_WATER = 262144
"""Bytes of output waiting for the client above which no request is taken and nothing is read."""
NEVER = float("inf")


class Shared:
    """The state that the connections of a server share; the server sets it."""

    limits: Settings
    routes: Routes
    keeps_alive: bool  # False once every response must close its connection
    place: memoryview | None  # the slot in which a child of a server that forks counts its requests


class Protocol:
    """The state of one connection.

    Attributes:
        output: bytes to send; the server removes them from the front.
        closing: close the connection once the output is sent.
        lingering: discard what the client still sends before the close (RFC 9112, section 9.6).
        busy: a request has been taken out, and its response has not been put in.
        deadline: the time on the monotonic clock at which to call `expire`.
        requests: number of requests answered so far.
    """

    __slots__ = (
        "_app", "_buffer", "_chunks", "_keep_alive", "_left", "_parser", "_pieces", "_position", "_request", "_size",
        "_skipped", "_streaming", "busy", "closing", "deadline", "lingering", "output", "requests",
    )  # fmt: skip

    def __init__(self, app: Shared) -> None:
        self._app = app
        self._parser = HeadParser()
        self._buffer = b""
        self._position = 0  # in the buffer, of the first unused byte
        self._skipped = False  # one empty line before a request line is ignored (RFC 9112, section 2.2)
        self._request: Request | None = None  # the request whose body is being received
        self._chunks: ChunkedDecoder | None = None
        self._left = 0  # remaining bytes of a body with Content-Length
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
        """True between requests: all that was received is answered, and there is nothing to send."""
        return not self.busy and self._request is None and not self._buffer and not self.output

    @property
    def pending(self) -> bool:
        """True if there are received bytes that are not used yet."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes from the network."""
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
        """Return the next complete request, or None if that needs more bytes or room in the output."""
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
        """Write the response to the last request that `next_request` returned."""
        keep_alive = self._keeps_alive(request)
        self.output += encode(response, keep_alive=keep_alive, minor=request.minor, with_body=request.method != b"HEAD")
        self._finished(keep_alive)

    def release(self) -> None:
        """Drop the parser, at the end of the connection."""
        self._parser.release()

    def expire(self) -> None:
        """End the connection because the deadline has passed, with 408 if a request is incomplete."""
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
                raise  # the client is sending a body that will not be read, so the connection must end
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
        """Read the body from the buffer. Returns whether it is complete."""
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
        """Send a piece of the body back. The time limit is for each piece, not for the whole body."""
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
        """Send an error and end the connection, as the start of the next request is not known."""
        if not self._streaming:  # otherwise the incomplete body tells the client
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
    """Return the response for an error."""
    return Response(error.detail.encode("utf-8") + b"\n", error.status, fields=error.fields)


def _check_prefix(head: bytes) -> None:
    """Refuse a head by its first bytes, so that the result does not depend on the fragments in which it arrives.

    Raises:
        HttpError: 400, a bare LF; 414 or 431, too long; whichever comes first.
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
