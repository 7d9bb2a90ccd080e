"""What all connections of a server share: the routes, the limits, the state, and whether it is draining."""

from __future__ import annotations

import sys
from _thread import allocate_lock

from workloads.handlers import ROUTES
from workloads.http.protocol import Protocol, error_response
from workloads.http.request import HttpError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.http.request import Request
    from workloads.http.response import Response
    from workloads.settings import Settings


class Application:
    """One server's shared state; the models differ in who calls it, and from which thread.

    Attributes:
        model: the server's name.
        limits: the settings, for those who only look at the limits in them.
        keeps_alive: False once every response has to end its connection.
        connections: the open ones.
    """

    def __init__(self, model: str, settings: Settings) -> None:
        self.model = model
        self.settings = self.limits = settings
        self.routes = ROUTES
        self.keeps_alive = True
        self.connections: set[Protocol] = set()
        self._lock = allocate_lock()
        self._finished = 0

    def open(self) -> Protocol:
        """The protocol of a new connection."""
        protocol = Protocol(self)
        self.connections.add(protocol)
        return protocol

    def closed(self, protocol: Protocol) -> None:
        """A connection has ended; calling it twice does no harm."""
        with self._lock:
            if protocol in self.connections:
                self.connections.remove(protocol)
                self._finished += protocol.requests

    @property
    def full(self) -> bool:
        """No further connection is to be taken."""
        return len(self.connections) >= self.settings.max_connections

    def requests(self) -> int:
        """Requests answered so far, on open and ended connections."""
        with self._lock:
            return self._finished + sum(protocol.requests for protocol in list(self.connections))

    def answer(self, request: Request) -> Response:
        """Call the handler; whatever goes wrong in it becomes a response, and concerns this request alone."""
        try:
            return request.route.handler(request, self)
        except HttpError as error:
            return error_response(error)
        except Exception as error:
            log(f"{request.path.decode('latin-1')}: {type(error).__name__}: {error}")
            return error_response(HttpError(500, "the handler failed"))


def log(line: str) -> None:
    """One line on the standard error, in one write, so that threads do not cut into each other."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
