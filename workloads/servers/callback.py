"""Callback: an event loop whose handlers call services with callbacks.

Each call of a service returns at once; it is given a function to call with the reply. One thread keeps any number of
requests under way. The cost is in the source code: one handler becomes four functions, and its local variables have to
be passed between them.

`/chain` is written twice below. In the first form, the functions have names, and get the variables as arguments. In the
second, each function is defined inside the one before it, and is a closure over its variables. `--form named|closure`
selects one.
"""

from __future__ import annotations

from workloads.application import failure
from workloads.chain import Chain, rpc_failure
from workloads.front import serve_requests
from workloads.http.request import CHAIN, NONBLOCKING_IO, SHORT
from workloads.loop import EventLoop
from workloads.nonblocking import begin_read
from workloads.pool import Pool
from workloads.rpc.callback_client import CallbackClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.application import Application
    from workloads.connection import Connection
    from workloads.http.request import Request
    from workloads.net import Socket
    from workloads.rpc.wire import Message, RpcError

    Done = Callable[[Chain], None]
    Failed = Callable[[RpcError], None]
    Handler = Callable[[CallbackClient, Chain, Done, Failed], None]

SECTION = "2.8.8, 2.9.2"

PICTURE = """
 one thread, no waiting:

 handler            after_user_info      after_query_info     after_stock_info
 A B call(user) --> C D call(query) ---> E F call(stock) ---> G H answer
        |              ^     |               ^     |              ^
        v              |     v               |     v              |
       loop ... user ... reply ... query ... reply ... stock ... reply
"""


def chain_named(rpc: CallbackClient, chain: Chain, done: Done, failed: Failed) -> None:
    """Handle `/chain` with named functions, which pass on the variables as arguments."""
    chain.work("AB")
    rpc.call("user", chain.question(), lambda reply: _after_user_info(rpc, chain, reply, done, failed), failed)


def _after_user_info(rpc: CallbackClient, chain: Chain, reply: Message, done: Done, failed: Failed) -> None:
    chain.add("user", reply)
    chain.work("CD")
    rpc.call("query", chain.question(), lambda reply: _after_query_info(rpc, chain, reply, done, failed), failed)


def _after_query_info(rpc: CallbackClient, chain: Chain, reply: Message, done: Done, failed: Failed) -> None:
    chain.add("query", reply)
    chain.work("EF")
    rpc.call("stock", chain.question(), lambda reply: _after_stock_info(chain, reply, done), failed)


def _after_stock_info(chain: Chain, reply: Message, done: Done) -> None:
    chain.add("stock", reply)
    chain.work("GH")
    done(chain)


def chain_closure(rpc: CallbackClient, chain: Chain, done: Done, failed: Failed) -> None:
    """Handle `/chain` with nested functions, which capture `rpc`, `chain`, `done` and `failed`."""
    chain.work("AB")

    def after_user_info(reply: Message) -> None:
        chain.add("user", reply)
        chain.work("CD")

        def after_query_info(reply: Message) -> None:
            chain.add("query", reply)
            chain.work("EF")

            def after_stock_info(reply: Message) -> None:
                chain.add("stock", reply)
                chain.work("GH")
                done(chain)

            rpc.call("stock", chain.question(), after_stock_info, failed)

        rpc.call("query", chain.question(), after_query_info, failed)

    rpc.call("user", chain.question(), after_user_info, failed)


FORMS: dict[str, Handler] = {"named": chain_named, "closure": chain_closure}


def serve(app: Application, listener: Socket) -> bool:
    """Answer short requests at once, chains by callbacks, and requests that block or compute on a worker thread."""
    loop = EventLoop()
    pool = Pool(app.settings.workers)
    rpc = CallbackClient(loop, app.services, app.settings.rpc_timeout)
    handle_chain = FORMS[app.settings.form]

    def handler(connection: Connection, request: Request) -> None:
        if request.route.kind == SHORT:
            connection.respond(request, app.answer(request))
        elif request.route.kind == CHAIN:
            start_chain(connection, request)
        elif request.route.kind == NONBLOCKING_IO:
            begin_read(loop, request, lambda response: connection.respond(request, response))
        else:
            pool.submit(lambda: work(connection, request))

    def start_chain(connection: Connection, request: Request) -> None:
        def done(chain: Chain) -> None:
            connection.respond(request, chain.response())

        def failed(error: Exception) -> None:
            connection.respond(request, failure(request, rpc_failure(error)))

        try:
            chain = Chain(request)
        except Exception as error:
            connection.respond(request, failure(request, error))
        else:
            handle_chain(rpc, chain, done, failed)

    def work(connection: Connection, request: Request) -> None:
        response = app.answer(request)
        loop.post(lambda: connection.respond(request, response))

    return serve_requests(loop, app, listener, handler)
