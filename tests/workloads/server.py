"""Start a real server in a separate process, and talk to it by plain sockets."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("blocking", "callback", "coroutine", "eventloop", "fork", "reactor", "sequential", "thread")
INTERPRETER = (sys.executable, "-m", "workloads")
SYSTEM_INTERPRETER = ("/usr/bin/python3", "-I", "-S", str(ROOT / "workloads" / "__main__.py"))
"""As in the root filesystem, with Debian's httptools."""

PATIENCE = 10.0
"""Seconds that any step may take before the test fails."""


class Server:
    """A running server. As a context manager, it ends the server and checks that nothing of it is left."""

    def __init__(
        self, model: str, *options: str, command: tuple[str, ...] = INTERPRETER, descriptors: int | None = None
    ) -> None:
        self.model = model
        # The shell's built-in sets the limit of open descriptors before Python starts.
        limit = ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh") if descriptors else ()
        self.process = subprocess.Popen(
            [*limit, *command, model, "--port", "0", *options],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.log = b""
        self.port = self._read_port()

    def _read_port(self) -> int:
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if select.select([descriptor], [], [], 0.1)[0]:
                chunk = os.read(descriptor, 4096)
                self.log += chunk
                match = re.search(rb"http://[\d.]+:(\d+)/", self.log)
                if match:
                    return int(match[1])
                if not chunk:
                    break
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        raise AssertionError(f"{self.model} did not start: {self.log.decode()}")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Open a connection to the server."""
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(PATIENCE)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def ask(self, data: bytes) -> bytes:
        """Send bytes, and return the answer up to the close by the server."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)

    def get(self, target: str, *, timeout: float = PATIENCE) -> tuple[int, bytes]:
        """Return the status and body of a GET on a new connection."""
        with self.connect() as client:
            client.settimeout(timeout)
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            return split(read_all(client))

    def post(self, target: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and body of a POST on a new connection."""
        head = f"POST {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        return split(self.ask(head.encode() + body))

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(PATIENCE)
        self._read_log()
        return code

    def kill(self) -> None:
        """Kill it and all processes that it has started, which share its process group."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
            self.process.wait(PATIENCE)
        self._read_log()

    def memory(self) -> int:
        """Return the bytes of resident memory of the server's process (proc(5), statm)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    def threads(self) -> int:
        """Return the number of threads of the server's process."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def _read_log(self) -> None:
        stream = self.process.stderr
        if stream is None or stream.closed:
            return
        while select.select([stream], [], [], 0)[0]:
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                break
            self.log += chunk
        stream.close()


def read_all(client: socket.socket) -> bytes:
    """Read until the other side closes."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Read bytes up to and including `end`."""
    data = b""
    while not data.endswith(end):
        piece = client.recv(65536)
        if not piece:
            raise AssertionError(f"closed after {data!r}")
        data += piece
    return data


def read_response(client: socket.socket) -> tuple[int, bytes]:
    """Read one response with Content-Length from a connection that stays open; nothing may follow it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            raise AssertionError(f"closed after {data!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    assert match, head
    while len(body) < int(match[1]):
        piece = client.recv(65536)
        assert piece, "closed inside a body"
        body += piece
    assert len(body) == int(match[1]), "more than the response"
    return int(head.split()[1]), body


def split(data: bytes) -> tuple[int, bytes]:
    """Return the status and body of a response."""
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, f"no response in {data!r}"
    return int(head.split()[1]), body


def statuses(data: bytes) -> list[int]:
    """Return the status codes of consecutive responses, by an independent parser (h11)."""
    import h11

    client = h11.Connection(h11.CLIENT)
    found = []
    while data:
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "test")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        while True:
            event = client.next_event()
            if isinstance(event, h11.InformationalResponse | h11.Response):
                found.append(event.status_code)
            if isinstance(event, h11.EndOfMessage) or event is h11.NEED_DATA:
                break
        data = client.trailing_data[0]
        if event is h11.NEED_DATA or client.their_state is not h11.DONE or client.our_state is not h11.DONE:
            break
        client.start_next_cycle()
        client = h11.Connection(h11.CLIENT)
    return found
