"""A listener on a Unix socket that answers as a test wants a dockerd to answer."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
"""Whatever makes the docker command use another dockerd."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        assert isinstance(self.server, FakeEngine)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while (size := int(self.rfile.readline(), 16)) > 0:
                self.rfile.read(size + 2)
            self.rfile.readline()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {re.sub('^/v[0-9.]+/', '/', self.path)}"
        self.server.asked.append(request)
        key = next((key for key in self.server.answers if request.startswith(key)), None)
        status, body = self.server.answers[key] if key else (404, {"message": "no such thing"})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if status == 101:
            self.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + data)
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

    def version_string(self) -> str:
        return "Docker/27.1.0 (linux)"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def address_string(self) -> str:
        return "unix"


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    """A dockerd that knows nothing but its answers.

    Attributes:
        answers: beginning of "METHOD /path", without the version, to status and body; what is not here is not found.
        asked: the requests so far.
    """

    daemon_threads = True
    block_on_close = False  # the SDK keeps idle connections

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.path = str(path)
        self.answers: dict[str, tuple[int, Any]] = {"GET /_ping": (200, b"OK")}
        self.asked: list[str] = []


@contextmanager
def listening(path: Path) -> Iterator[FakeEngine]:
    """A fake engine at a socket, for the time of a block."""
    with FakeEngine(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
