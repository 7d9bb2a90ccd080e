"""Event loop: one thread waits for all clients at once and does all the work itself.

The loop is `while True: event = get_event(); handler(event)`. get_event is epoll, which waits for all sockets at once
and reports the ready ones; handlers never wait for a client. This is fast as long as handlers are short or leave their
waiting to the loop (`/io?ms=N&nonblocking=1`). A handler that computes or blocks delays all clients; the reactor solves
this.
"""

from __future__ import annotations

from workloads.front import serve_requests
from workloads.http.request import NONBLOCKING_IO
from workloads.loop import EventLoop
from workloads.nonblocking import begin_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.connection import Connection
    from workloads.http.request import Request
    from workloads.net import Socket

SECTION = "2.8.3, 2.8.4"

PICTURE = """
 clients                       one thread
  o ------.             +-------------------------------+
  o -------\\            | while True:                   |
  o --------> epoll --> |     event = get_event()       |
  o -------/            |     handler(event)            |
  o ------'             +-------------------------------+
"""


def serve(app: Application, listener: Socket) -> bool:
    """Serve all connections on the calling thread."""
    loop = EventLoop()

    def handler(connection: Connection, request: Request) -> None:
        if request.route.kind == NONBLOCKING_IO:
            begin_read(loop, request, lambda response: connection.respond(request, response))
        else:
            connection.respond(request, app.answer(request))

    return serve_requests(loop, app, listener, handler)
