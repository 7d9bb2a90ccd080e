"""What a request says, and which handler answers it."""

from __future__ import annotations

TYPE_CHECKING = False  # mypy takes any name so spelt as true; importing typing would cost 5 ms at every start
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.http.response import Response

    Handler = Callable[["Request"], Response]
    Routes = dict[bytes, "Route"]  # by path

_HEX = b"0123456789abcdefABCDEF"

SHORT = "short"
"""Answered from memory in microseconds."""
CPU = "cpu"
"""Computes for as long as it is asked to."""
IO = "io"
"""Sits in a blocking system call."""
NONBLOCKING_IO = "non-blocking io"
"""Waits for a socket that a loop can watch; each model with a loop does it in its own way, and the handler refuses."""
CHAIN = "chain"
"""Calls three services one after the other."""
STREAM = "stream"
"""The body is sent back while it comes in; the protocol itself does it, and no handler is called."""


class HttpError(Exception):
    """The request cannot be answered as asked; becomes a response with this status.

    Attributes:
        status: the HTTP status code.
        detail: one line for the client.
        fields: further response header fields.
    """

    def __init__(self, status: int, detail: str, fields: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = fields


class Request:
    """One request. `body` is complete by the time that a handler sees it.

    Attributes:
        method: as sent; methods are case-sensitive.
        path: decoded, without the query.
        query: as sent, without the question mark.
        headers: by lower-case name; the values of repeated fields are joined by commas (RFC 9110, section 5.3).
        minor: of the HTTP version: 0 or 1.
        keep_alive: whether the client wants the connection to stay open.
        length: of the body, by Content-Length; None without one.
        chunked: whether the body is chunked.
        route: what answers it.
        body: the collected body.
    """

    __slots__ = (
        "body", "chunked", "headers", "keep_alive", "length", "method", "minor", "path", "query", "route",
    )  # fmt: skip

    route: Route

    def __init__(self, method: bytes, path: bytes, query: bytes, headers: dict[bytes, bytes], minor: int) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.minor = minor
        self.keep_alive = minor == 1
        self.length: int | None = None
        self.chunked = False
        self.body = b""

    def arguments(self) -> dict[bytes, bytes]:
        """The query's name=value pairs, decoded; the last of equal names counts.

        Raises:
            HttpError: 400, an escape is malformed.
        """
        pairs = (item.partition(b"=") for item in self.query.split(b"&") if item)
        return {unquote(name.replace(b"+", b" ")): unquote(value.replace(b"+", b" ")) for name, _, value in pairs}

    def integer(self, name: bytes, default: int, low: int, high: int) -> int:
        """The query's argument `name` as a decimal number.

        Raises:
            HttpError: 400, it is not a number from `low` to `high`.
        """
        text = self.arguments().get(name)
        if text is None:
            return default
        if not text.isdigit() or len(text) > 18 or not low <= int(text) <= high:
            raise HttpError(400, f"{name.decode('latin-1')} must be a number from {low} to {high}")
        return int(text)


def unquote(text: bytes) -> bytes:
    """Decode %XX (RFC 3986, section 2.1).

    Raises:
        HttpError: 400, a percent sign without two hexadecimal digits.
    """
    if b"%" not in text:
        return text
    first, *rest = text.split(b"%")
    parts = [first]
    for part in rest:
        digits = part[:2]
        if len(digits) < 2 or digits.translate(None, _HEX):
            raise HttpError(400, "malformed escape in the target")
        parts.append(bytes((int(digits, 16),)) + part[2:])
    return b"".join(parts)


class Route:
    """One resource.

    Attributes:
        path: of the target.
        methods: that it allows.
        kind: what the handler does to the thread that calls it; each model decides by it where the handler runs.
        handler: called with the request.
        nonblocking: the route of requests that say `nonblocking=1`, where there is one.
    """

    __slots__ = ("handler", "kind", "methods", "nonblocking", "path")

    def __init__(
        self, path: bytes, methods: tuple[bytes, ...], kind: str, handler: Handler, nonblocking: Route | None = None
    ) -> None:
        self.path = path
        self.methods = methods
        self.kind = kind
        self.handler = handler
        self.nonblocking = nonblocking


def find_route(routes: Routes, request: Request) -> Route:
    """The route for a request.

    Raises:
        HttpError: 404, no such path; 405, not that method there; 411, a POST that does not say its length; 400,
            `nonblocking` is neither 0 nor 1.
    """
    route = routes.get(request.path)
    if route is None:
        raise HttpError(404, "no such resource")
    if request.method not in route.methods:
        raise HttpError(405, "the resource does not allow this method", ((b"Allow", b", ".join(route.methods)),))
    if request.method == b"POST" and request.length is None and not request.chunked:
        raise HttpError(411, "a POST needs Content-Length or chunked coding")
    if route.nonblocking is not None and request.integer(b"nonblocking", 0, 0, 1):
        return route.nonblocking
    return route
