"""The state of a server that its handlers and its model share."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock

from workloads.http.protocol import Protocol, Shared, error_response
from workloads.http.request import HttpError
from workloads.net import timeval
from workloads.state import Counts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.http.request import Request, Routes
    from workloads.http.response import Response
    from workloads.rpc.blocking_client import BlockingClient
    from workloads.rpc.services import Services
    from workloads.settings import Settings


class Application(Shared):
    """One server's shared state; the models differ in who calls it, and from which thread.

    Attributes:
        model: the server's name.
        server_pid: of the process that was started.
        settings: the options.
        send_timeout: the idle time, as SO_SNDTIMEO takes it.
        connections: the open ones, of this process.
        counts: numbers that all requests share.
        services: A, B and C.
        coroutines: how many there are now; None for a model without them.
    """

    def __init__(
        self, model: str, settings: Settings, services: Services, routes: Callable[[Application], Routes]
    ) -> None:
        self.model = model
        self.server_pid = os.getpid()
        self.settings = self.limits = settings
        self.send_timeout = timeval(settings.idle_time)
        self.services = services
        self.routes = routes(self)
        self.keeps_alive = True
        self.connections: set[Protocol] = set()
        self.counts = Counts.of_threads()
        self.place = None
        self.coroutines: Callable[[], int] | None = None
        self._client: BlockingClient | None = None
        self._lock = allocate_lock()

    def share_between_processes(self) -> memoryview:
        """The server forks: count where all processes see it; returns the places of the children there."""
        self.counts, places = Counts.of_processes(max(1, self.settings.max_connections))
        return places

    def blocking_client(self) -> BlockingClient:
        """The client of the services for handlers that may block."""
        with self._lock:
            if self._client is None:
                from workloads.rpc.blocking_client import BlockingClient

                self._client = BlockingClient(self.services, self.settings.rpc_timeout)
            return self._client

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
                self.counts.finished += protocol.requests
                protocol.release()

    @property
    def full(self) -> bool:
        """No further connection is to be taken."""
        return self.open_connections() >= self.settings.max_connections

    def open_connections(self) -> int:
        """Connections that are open now, of all processes."""
        return self.counts.connections.get() if self.counts.places is not None else len(self.connections)

    def requests(self) -> int:
        """Requests answered so far, by all processes."""
        if self.counts.places is not None:
            return sum(self.counts.places)
        with self._lock:
            return self.counts.finished + sum(protocol.requests for protocol in list(self.connections))

    def answer(self, request: Request) -> Response:
        """Call the handler; whatever goes wrong in it becomes a response, and concerns this request alone."""
        try:
            return request.route.handler(request)
        except Exception as error:
            return failure(request, error)


def failure(request: Request, error: Exception) -> Response:
    """The response for what a handler raised: its own status if it has one, else 500 and a line in the log."""
    if isinstance(error, HttpError):
        return error_response(error)
    log(f"{request.path.decode('latin-1')}: {type(error).__name__}: {error}")
    return error_response(HttpError(500, "the handler failed"))


def log(line: str) -> None:
    """One line on the standard error, in one write, so that threads do not cut into each other."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
