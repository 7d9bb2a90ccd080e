"""A command inside a guest, behind an SSH channel: what the relay reads from and writes to."""

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
"""Seconds between looks whether the machine lives: a connection to one that was switched off never says so."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""What a shell would say of a command whose output nobody reads any more."""
REFUSALS = ("not-found", "not-executable", "no-directory", "no-room")
_ANSWER_TIMEOUT = 30.0


def refusal(said: str, command: str, directory: str) -> SandboxError:
    """The error for a word of the guest's scripts that is not "started"."""
    match said:
        case "not-found":
            return CommandNotFoundError(f"there is no command {command!r} inside")
        case "not-executable":
            return CannotInvokeError(f"{command!r} cannot be executed")
        case "no-directory":
            return CannotInvokeError(f"there is no directory {directory!r} inside")
        case "no-room":
            return EngineError(
                f"{command!r} was not started: the sandbox has as many processes as it may", "a higher --pids-limit"
            )
    return EngineError(f"the guest did not start {command!r}: {said or 'it said nothing'}")


class Command(Backend):
    """A command over a channel of its own."""

    def __init__(self, channel: paramiko.Channel, alive: Callable[[], bool], kill: Callable[[], object]) -> None:
        """Take a channel over.

        Args:
            channel: with a command on it.
            alive: whether the machine runs.
            kill: ends all that the command is and has started.
        """
        self._channel = channel
        self._alive = alive
        self._kill = kill
        self._unread = False
        channel.settimeout(LOOK_EVERY)
        self._poller = select.poll()
        # Readable when something has come on either stream, and from the end on (paramiko's documentation of Channel).
        self._poller.register(channel.fileno(), select.POLLIN)

    def first_line(self, *, terminal: bool) -> str:
        """The line that vm/guest/enter says before the command says anything.

        Raises:
            EngineError: it says nothing, in time.
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
            # Asked before the reads: what came last is then still read.
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
        # SSH has no way to close one stream of the other side's (RFC 4254, section 5.3).
        self._unread = True
        self.end()

    def end(self) -> None:
        if not self._channel.exit_status_ready():
            self._kill()
        self.close()

    def exit_code(self, timeout: float | None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._unread and not self._channel.status_event.wait(LOOK_EVERY):
            if not self._alive():
                raise EngineError("the sandbox ended before the command did")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        if self._unread:
            return BROKEN_PIPE
        code = int(self._channel.exit_status)
        if code < 0:
            raise EngineError("the sandbox ended before the command did")
        return code

    def close(self) -> None:
        with suppress(OSError, EOFError):
            self._channel.close()
