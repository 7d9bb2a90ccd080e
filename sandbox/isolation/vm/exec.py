"""The relay's backend for a command inside a guest, connected through an SSH channel."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SandboxError
from sandbox.isolation.base import WindowSize
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.relay import CHUNK, Backend

if TYPE_CHECKING:
    import paramiko

LOOK_EVERY = 0.5
"""Seconds between checks that the machine runs: a connection to one that was switched off stays open."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code of a command that was ended by SIGPIPE, in a shell's terms."""
REFUSALS = ("not-found", "not-executable", "no-directory", "no-room")
_ANSWER_TIMEOUT = 30.0


def refusal(said: str, command: str, directory: str) -> SandboxError:
    """Return the error for an answer of the guest's scripts other than "started"."""
    match said:
        case "not-found":
            return CommandNotFoundError(f"there is no command {command!r} inside")
        case "not-executable":
            return CannotInvokeError(f"{command!r} cannot be executed")
        case "no-directory":
            return CannotInvokeError(f"there is no directory {directory!r} inside")
        case "no-room":
            return EngineError(
                f"{command!r} was not started: the sandbox has reached its limit on processes", "a higher --pids-limit"
            )
    return EngineError(f"the guest did not start {command!r}: {said or 'it gave no reason'}")


class Command(Backend):
    """A command inside a guest, with an SSH channel of its own."""

    def __init__(self, channel: paramiko.Channel, alive: Callable[[], bool], kill: Callable[[], object]) -> None:
        """Take over a channel.

        Args:
            channel: with a command running.
            alive: returns whether the machine runs.
            kill: kills the command and its children.
        """
        self._channel = channel
        self._alive = alive
        self._kill = kill
        self._read_closed = False
        channel.settimeout(LOOK_EVERY)
        self._poller = select.poll()
        # Readable if either stream has data, and after the end of file (paramiko's documentation of Channel).
        self._poller.register(channel.fileno(), select.POLLIN)

    def first_line(self, *, terminal: bool) -> str:
        """Return the line that vm/guest/enter writes before any output of the command.

        Raises:
            EngineError: it does not arrive in time.
        """
        receive = self._channel.recv if terminal else self._channel.recv_stderr
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        line = b""
        while not line.endswith(b"\n"):
            try:
                got = receive(1)
            except TimeoutError:
                if self._alive() and time.monotonic() < deadline:
                    continue
                raise EngineError("the guest does not answer") from None
            if not got:
                break
            line += got
        return line.decode("utf-8", "replace").strip()

    def read(self) -> tuple[int, bytes]:
        channel = self._channel
        while True:
            # Checked before the reads, so that the last output is still read.
            ended = channel.closed or channel.eof_received or not self._alive()
            if channel.recv_ready():
                return STDOUT, channel.recv(CHUNK)
            if channel.recv_stderr_ready():
                return STDERR, channel.recv_stderr(CHUNK)
            if ended:
                return STDOUT, b""
            self._poller.poll(LOOK_EVERY * 1000)

    def write(self, data: bytes) -> bool:
        while data:
            try:
                sent = self._channel.send(data)
            except TimeoutError:
                if self._alive():
                    continue
                return False
            except (OSError, EOFError):
                return False
            if not sent:
                return False
            data = data[sent:]
        return True

    def close_write(self) -> None:
        with suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def resize(self, size: WindowSize) -> None:
        import paramiko

        with suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.resize_pty(width=size.columns, height=size.rows)

    def close_read(self, stream: int) -> None:
        # SSH cannot close a single stream of the other side (RFC 4254, section 5.3), so the command is killed.
        self._read_closed = True
        self.end()

    def end(self) -> None:
        if not self._channel.exit_status_ready():
            self._kill()
        self.close()

    def exit_code(self, timeout: float | None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._read_closed and not self._channel.status_event.wait(LOOK_EVERY):
            if not self._alive():
                raise EngineError("the sandbox ended before the command did")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        if self._read_closed:
            return BROKEN_PIPE
        code = int(self._channel.exit_status)
        if code < 0:
            raise EngineError("the sandbox ended before the command did")
        return code

    def close(self) -> None:
        with suppress(OSError, EOFError):
            self._channel.close()
