"""Which handler answers which target."""

from __future__ import annotations

from workloads.http.request import HttpError, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from workloads.application import Application
    from workloads.http.response import Response

    Handler = Callable[[Request, Application], Response]

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


class Route:
    """One resource.

    Attributes:
        path: of the target.
        methods: that it allows.
        kind: what the handler does to the thread that calls it; each model decides by it where the handler runs.
        handler: called with the request and the application.
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


class Routes:
    """A table of routes, by path."""

    __slots__ = ("_table",)

    def __init__(self, routes: Iterable[Route]) -> None:
        self._table = {route.path: route for route in routes}

    def find(self, request: Request) -> Route:
        """The route for a request.

        Raises:
            HttpError: 404, no such path; 405, not that method there; 411, a POST that does not say its length; 400,
                `nonblocking` is neither 0 nor 1.
        """
        route = self._table.get(request.path)
        if route is None:
            raise HttpError(404, "no such resource")
        if request.method not in route.methods:
            raise HttpError(405, "the resource does not allow this method", ((b"Allow", b", ".join(route.methods)),))
        if request.method == b"POST" and request.length is None and not request.chunked:
            raise HttpError(411, "a POST needs Content-Length or chunked coding")
        if route.nonblocking is not None and request.integer(b"nonblocking", 0, 0, 1):
            return route.nonblocking
        return route
