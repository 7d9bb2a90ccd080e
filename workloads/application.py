"""The state that a server's handlers share with its concurrency model."""

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
    """The shared state of one server. The models differ in the threads that call it.

    Attributes:
        model: name of the server.
        server_pid: pid of the process that was started.
        settings: the options.
        send_timeout: the idle time, in the form of SO_SNDTIMEO.
        connections: open connections of this process.
        counts: counters that all requests share.
        services: the services A, B and C.
        coroutines: returns the current number of coroutines; None for a model without them.
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
        """Move the counters to shared memory, for a server that forks. Returns the children's slots in it."""
        self.counts, places = Counts.of_processes(max(1, self.settings.max_connections))
        return places

    def blocking_client(self) -> BlockingClient:
        """Return the services' client for handlers that may block, created at the first call."""
        with self._lock:
            if self._client is None:
                from workloads.rpc.blocking_client import BlockingClient

                self._client = BlockingClient(self.services, self.settings.rpc_timeout)
            return self._client

    def open(self) -> Protocol:
        """Create the protocol of a new connection."""
        protocol = Protocol(self)
        self.connections.add(protocol)
        return protocol

    def closed(self, protocol: Protocol) -> None:
        """Forget a connection that has ended. A second call has no effect."""
        with self._lock:
            if protocol in self.connections:
                self.connections.remove(protocol)
                self.counts.finished += protocol.requests
                protocol.release()

    @property
    def full(self) -> bool:
        """True if no further connection may be accepted."""
        return self.open_connections() >= self.settings.max_connections

    def open_connections(self) -> int:
        """Return the number of open connections of all processes."""
        return self.counts.connections.get() if self.counts.places is not None else len(self.connections)

    def requests(self) -> int:
        """Return the number of requests that all processes have answered so far."""
        if self.counts.places is not None:
            return sum(self.counts.places)
        with self._lock:
            return self.counts.finished + sum(protocol.requests for protocol in list(self.connections))

    def answer(self, request: Request) -> Response:
        """Call the handler. An exception in it becomes the response to this request, and affects no other."""
        try:
            return request.route.handler(request)
        except Exception as error:
            return failure(request, error)


def failure(request: Request, error: Exception) -> Response:
    """Return the response for an exception of a handler: an HttpError's own status, else 500 and a line in the log."""
    if isinstance(error, HttpError):
        return error_response(error)
    log(f"{request.path.decode('latin-1')}: {type(error).__name__}: {error}")
    return error_response(HttpError(500, "the handler failed"))


def log(line: str) -> None:
    """Write one line to standard error in one call, so that lines of different threads are not mixed."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
