"""Requests, and the routes to the handlers that answer them."""

from __future__ import annotations

TYPE_CHECKING = False  # mypy takes this name as true; importing typing would take 5 ms at every start
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.http.response import Response

    Handler = Callable[["Request"], Response]
    Routes = dict[bytes, "Route"]  # by path

_HEX = b"0123456789abcdefABCDEF"

SHORT = "short"
"""The handler answers from memory, in microseconds."""
CPU = "cpu"
"""The handler computes for as long as the request says."""
IO = "io"
"""The handler blocks in a system call."""
NONBLOCKING_IO = "non-blocking io"
"""The request waits for a socket that a loop can watch. Models with a loop serve it; the handler refuses it."""
CHAIN = "chain"
"""The handler calls three services, one after the other."""
STREAM = "stream"
"""The protocol sends the body back while it arrives; no handler is called."""


class HttpError(Exception):
    """An error that becomes a response with its status.

    Attributes:
        status: the HTTP status code.
        detail: one line for the client.
        fields: further header fields of the response.
    """

    def __init__(self, status: int, detail: str, fields: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.fields = fields


class Request:
    """One request.

    Attributes:
        method: the method as sent; methods are case-sensitive.
        path: the path, decoded, without the query.
        query: the query as sent, without the question mark.
        headers: values by lower-case name; those of repeated fields are joined by commas (RFC 9110, section 5.3).
        minor: the minor HTTP version, 0 or 1.
        keep_alive: whether the client wants the connection to stay open.
        length: the value of Content-Length, or None.
        chunked: whether the body is chunked.
        route: the route to its handler.
        body: the body, complete when a handler is called.
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
        """Decode the name=value pairs of the query; the last of equal names counts.

        Raises:
            HttpError: 400, an escape is malformed.
        """
        pairs = (item.partition(b"=") for item in self.query.split(b"&") if item)
        return {unquote(name.replace(b"+", b" ")): unquote(value.replace(b"+", b" ")) for name, _, value in pairs}

    def integer(self, name: bytes, default: int, low: int, high: int) -> int:
        """Return the argument `name` of the query as a decimal number.

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
    """Decode %XX escapes (RFC 3986, section 2.1).

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
    """The handler of one resource.

    Attributes:
        path: the path of the target.
        methods: the allowed methods.
        kind: how the handler uses its thread; each model decides by it on which thread the handler runs.
        handler: the handler, called with the request.
        nonblocking: the route of requests with `nonblocking=1`, or None.
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
    """Find the route of a request.

    Raises:
        HttpError: 404, no such path; 405, the path does not allow the method; 411, a POST without a length; 400,
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
