"""Reactor: an event loop takes the requests and hands the long ones to worker threads.

The café: the owner stands at the counter and takes orders. What is on the counter, the owner hands over at once. What
has to be cooked goes to the kitchen on a slip of paper, and the owner turns to the next guest; when a cook rings the
bell, the owner serves the dish. The owner never cooks, so no guest waits at the counter for another's dinner.
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
    """Run the café until closing time."""
    counter = EventLoop()
    kitchen = Pool(app.settings.workers)

    def take_order(guest: Connection, order: Request) -> None:
        if order.route.kind == SHORT:
            guest.respond(order, app.answer(order))
        elif order.route.kind == NONBLOCKING_IO:  # in the oven: it needs no cook, only somebody who hears it ring
            begin_read(counter, order, lambda dish: guest.respond(order, dish))
        else:
            kitchen.submit(lambda: cook(guest, order))

    def cook(guest: Connection, order: Request) -> None:
        dish = app.answer(order)
        counter.post(lambda: guest.respond(order, dish))

    return serve_requests(counter, app, listener, take_order)
