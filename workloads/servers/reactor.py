"""Reactor: an event loop takes the requests and passes the long ones to worker threads.

It works like a café. The owner (the loop) stands at the counter and takes orders (requests). Whatever is on the counter
is served at once. A dish that has to be cooked is ordered from the kitchen (the pool), and the owner turns to the next
guest; when a cook (a worker) rings the bell, the owner serves the dish (the response). The owner never cooks, so no
guest waits at the counter for another guest's dinner.
"""

from __future__ import annotations

from workloads.front import serve_requests
from workloads.http.request import NONBLOCKING_IO, SHORT
from workloads.loop import EventLoop
from workloads.nonblocking import begin_read
from workloads.pool import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.connection import Connection
    from workloads.http.request import Request
    from workloads.net import Socket

SECTION = "2.8.5, 2.8.6, 2.8.7"

PICTURE = """
 clients            the owner (one thread)              the cooks (worker threads)
 -------            ----------------------              --------------------------
  o ------.        +----------------------+   order    +---------------------+
  o -------\\       | event = get_event()  | =========> | work = queue.get()  |
  o --------> epoll| short?  answer it    |            | compute, or block   |
  o -------/       | long?   hand it over | <========= | ring the bell       |
  o ------'        +----------------------+   dish     +---------------------+
"""


def serve(app: Application, listener: Socket) -> bool:
    """Answer short requests on the loop's thread, and the others on worker threads."""
    loop = EventLoop()
    pool = Pool(app.settings.workers)

    def handler(connection: Connection, request: Request) -> None:
        if request.route.kind == SHORT:
            connection.respond(request, app.answer(request))
        elif request.route.kind == NONBLOCKING_IO:  # the loop can wait for it, without a worker
            begin_read(loop, request, lambda response: connection.respond(request, response))
        else:
            pool.submit(lambda: work(connection, request))

    def work(connection: Connection, request: Request) -> None:
        response = app.answer(request)
        loop.post(lambda: connection.respond(request, response))

    return serve_requests(loop, app, listener, handler)
