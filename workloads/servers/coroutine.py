"""Coroutine: handlers in straight-line code, which yield wherever they would block.

`/chain` below looks like the blocking handler, and costs as little as the callbacks: at each `await`, the thread runs
another coroutine. Each of several worker threads has its own scheduler. The kernel divides the processor's time among
threads and does not know coroutines; each scheduler divides its thread's time among coroutines.
"""

from __future__ import annotations

from _socket import socketpair
from _thread import start_new_thread
from itertools import cycle

from workloads.accept_loop import AcceptLoop
from workloads.application import failure
from workloads.chain import Chain, rpc_failure
from workloads.coroutine_connection import CoroutineConnection
from workloads.handlers import io_response, io_time
from workloads.http.request import CHAIN, NONBLOCKING_IO, SHORT
from workloads.pool import Pool
from workloads.rpc.coroutine_client import CoroutineClient
from workloads.rpc.wire import RpcError
from workloads.scheduler import Scheduler, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.http.request import Request
    from workloads.http.response import Response
    from workloads.net import Socket

SECTION = "2.8.9, 2.8.10"

PICTURE = """
 kernel:      CPU  ------ divides its time among ------>  threads
 schedulers:  thread  --- divide its time among ------->  coroutines

   thread 1: | co 1: A B -await | co 4: C D -await | co 1: C D -await | ...
   thread 2: | co 2: A B -await | co 3: E F -await | co 2: C D -await | ...
               (await = yield; a coroutine that waits holds no thread)
"""

DEFAULT_WORKERS = 2


async def handle_chain(rpc: CoroutineClient, chain: Chain) -> Chain:
    """Run the chain in straight-line code; compare `chain_blocking` in handlers.py and the functions of callback.py."""
    chain.work("AB")
    chain.add("user", await rpc.call("user", chain.question()))
    chain.work("CD")
    chain.add("query", await rpc.call("query", chain.question()))
    chain.work("EF")
    chain.add("stock", await rpc.call("stock", chain.question()))
    chain.work("GH")
    return chain


async def nonblocking_read(scheduler: Scheduler, milliseconds: int) -> None:
    """Read without blocking the thread: only the coroutine waits. Compare `blocking_read` in handlers.py."""
    ours, theirs = socketpair()
    stream = Stream(scheduler, ours)
    try:
        stream.expire_after(milliseconds / 1000)
        await stream.read()
    except TimeoutError:
        return
    finally:
        stream.close()
        theirs.close()


class Worker(Scheduler):
    """The scheduler of one worker thread."""

    def __init__(self, app: Application, pool: Pool) -> None:
        super().__init__()
        self._app = app
        self._pool = pool
        self._rpc = CoroutineClient(self, app.services, app.settings.rpc_timeout)

    async def handle(self, request: Request) -> Response:
        """Call the handler of a request, in the way that suits its kind."""
        if request.route.kind == SHORT:
            return self._app.answer(request)
        try:
            if request.route.kind == CHAIN:
                return (await handle_chain(self._rpc, Chain(request))).response()
            if request.route.kind == NONBLOCKING_IO:
                milliseconds = io_time(request)
                await nonblocking_read(self, milliseconds)
                return io_response(milliseconds)
        except RpcError as error:
            return failure(request, rpc_failure(error))
        except Exception as error:
            return failure(request, error)
        return await self.run_in(self._pool, lambda: self._app.answer(request))


def serve(app: Application, listener: Socket) -> bool:
    """Accept clients on the main thread, and serve each by a coroutine of the next worker in turn."""
    pool = Pool(0)
    workers = [Worker(app, pool) for _ in range(app.settings.workers or DEFAULT_WORKERS)]
    app.coroutines = lambda: sum(worker.coroutines for worker in workers)
    accept_loop = AcceptLoop(app, listener)
    for worker in workers:
        start_new_thread(worker.run, ())
    turn = cycle(workers)
    for client in accept_loop.clients():
        if client is not None:
            connection = CoroutineConnection(client, app, accept_loop.connections.discard)
            accept_loop.connections.add(connection)
            worker = next(turn)
            worker.spawn(connection.serve(worker, worker.handle))
    return accept_loop.drain()
