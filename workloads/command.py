"""The command line of the servers: `python -m workloads NAME [--option value …]`."""

from __future__ import annotations

import sys

from workloads.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application
    from workloads.net import Socket

EXIT_USAGE = 2


def main(arguments: list[str]) -> int:
    """Run a server until SIGTERM or SIGINT. Returns the exit code: 0 drained, 1 requests cut off, 2 wrong usage."""
    try:
        if not arguments or arguments[0].startswith("-"):
            raise UsageError(f"usage: python -m workloads NAME [--host H] [--port P] …; NAME is one of {_names()}")
        return _run(arguments[0], arguments[1:])
    except UsageError as error:
        sys.stderr.write(f"workloads: {error}\n")
        return EXIT_USAGE


def _run(name: str, arguments: list[str]) -> int:
    from workloads import settings as options
    from workloads.application import Application, log
    from workloads.handlers import routes
    from workloads.net import listen
    from workloads.rpc.services import Services

    settings = options.parse(arguments)
    serve = _load(name)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise UsageError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from None
    services = Services()
    app = Application(name, settings, services, routes)
    host, port = listener.getsockname()
    log(f"{name}: listening on http://{host}:{port}/")
    try:
        services.start(settings, listener)
    except OSError as error:
        log(f"{name}: /chain will answer 503: the services cannot start: {error.strerror or error}")
    try:
        return 0 if serve(app, listener) else 1
    finally:
        services.stop()


def _load(name: str) -> ServeFunction:
    if name not in _names().split():
        raise UsageError(f"no server is called {name!r}; there is {_names()}")
    module = __import__(f"workloads.servers.{name}", fromlist=["serve"])
    serve: ServeFunction = module.serve
    return serve


def _names() -> str:
    import os

    folder = os.path.join(os.path.dirname(__file__), "servers")
    return " ".join(sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".py") and name[0] != "_"))


if TYPE_CHECKING:
    from collections.abc import Callable

    ServeFunction = Callable[[Application, Socket], bool]
