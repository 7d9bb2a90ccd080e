"""The application for the counterparts, which serves the same short reply by ASGI and WSGI. Standard library only.

As a script it runs those servers that have no suitable command of their own: `python counterparts.py NAME PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socketserver import ForkingMixIn
from typing import Any

BODY = b"hello"
_FIELDS = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(BODY)))]
_RAW_FIELDS = [(name.lower().encode(), value.encode()) for name, value in _FIELDS]


async def asgi(
    scope: dict[str, Any], _receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Serve the reply by ASGI, for uvicorn and granian."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _RAW_FIELDS})
        await send({"type": "http.response.body", "body": BODY})


def wsgi(_environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Serve the reply by WSGI, for waitress, cheroot and gunicorn."""
    start_response("200 OK", _FIELDS)
    return [BODY]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one TCP segment; unbuffered, they would be in two

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in _FIELDS:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Write no line per request, as our servers do not either."""


class _ThreadingServer(ThreadingHTTPServer):
    request_queue_size = 4096


class _ForkingServer(ForkingMixIn, HTTPServer):
    request_queue_size = 4096
    max_children = 1000


def main(name: str, port: int) -> None:
    """Run a server for ever."""
    address = ("127.0.0.1", port)
    if name == "ThreadingHTTPServer":
        _ThreadingServer(address, _Handler).serve_forever()
    elif name == "ForkingHTTPServer":
        _ForkingServer(address, _Handler).serve_forever(poll_interval=0.05)
    elif name == "waitress":
        from waitress import serve  # type: ignore[import-untyped, unused-ignore]

        serve(wsgi, host=address[0], port=port, backlog=4096)
    else:
        from cheroot.wsgi import Server  # type: ignore[import-not-found]

        Server(address, wsgi, numthreads=64, request_queue_size=4096).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
