"""Docker's multiplexed streams, and a command run inside through the exec API.

A stream is a sequence of frames: one byte that says which output, three of padding, four of length (big endian), and
the bytes; see the Docker Engine API, "Attach to a container".
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SandboxError
from sandbox.host.docker import TIMEOUT, Engine, NoAnswerError, RefusalError
from sandbox.isolation.base import ExecResult

STDERR = 2
HEADER = struct.Struct(">BxxxL")
_KILLED = 128 + 9
_SLACK = 5.0
"""Seconds beyond a command's own time limit that the engine gets to tell us of its end."""

_LOOK_EVERY = 0.5
"""Seconds between looks whether the container still runs, while a command runs in it."""
_LAST_WORDS = 0.5
"""Seconds that a command's output may take to end after its container did."""

_NOT_RUN = "the command cannot be run"
_RUNTIME_WORDS = b"OCI runtime exec failed"
_TIMEOUT = "/usr/bin/timeout"


def frames(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(Output number, bytes) until the stream ends; a frame that was cut off is dropped."""
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        output, length = HEADER.unpack(header)
        data = stream.read(length)
        if len(data) < length:
            return
        if data:
            yield output, data


def read_log(
    engine: Engine, container: str, *, follow: bool, tail: int | None = None, since: float | None = None
) -> Iterator[bytes]:
    """What a container wrote to stdout and stderr, in order; nothing when it is gone.

    Args:
        engine: where the container is.
        container: its name.
        follow: go on until it ends.
        tail: begin with the last so many lines.
        since: seconds since the epoch, with fractions.

    Raises:
        EngineError
    """
    params = {"stdout": "1", "stderr": "1", "follow": str(int(follow))}
    if tail is not None:
        params["tail"] = str(tail)
    if since is not None:
        params["since"] = f"{since:.9f}"
    with engine.talking("the log cannot be read") as api:
        response = api.get(
            f"{api.base_url}/v{api.api_version}/containers/{container}/logs",
            params=params,
            stream=True,
            timeout=None if follow else TIMEOUT,
        )
        try:
            if response.status_code != 404:
                api._raise_for_status(response)
                for _, data in frames(response.raw):
                    yield data
        finally:
            response.close()


def run(
    engine: Engine,
    container: str,
    argv: Sequence[str],
    *,
    user: str,
    timeout: float | None,
    alive: Callable[[], bool],
) -> ExecResult:
    """Run a command in a running container and wait for it.

    The API cannot kill a command. So a time limit goes along with it: timeout(1) from the root filesystem runs it in
    a process group of its own and kills that group. This holds under gVisor (whose processes the host cannot tell
    apart), and when this process dies first.

    Args:
        engine: where the container is.
        container: its name.
        argv: the command.
        user: "uid:gid" inside.
        timeout: seconds; None waits for ever.
        alive: whether the container still runs: when gVisor's kernel dies, the engine never ends the command's output.

    Raises:
        EngineError, CommandNotFoundError, CannotInvokeError, TimeoutError
    """
    if not argv:
        raise CommandNotFoundError("there is no command to run inside")
    command = list(argv)
    if timeout is not None:
        command = [_TIMEOUT, "--signal=KILL", f"{max(timeout, 0.001):.3f}", *command]
    try:
        code, out, err, took = _run(engine, container, command, user, timeout, alive)
    except RefusalError as error:
        raise refused(argv[0], error.reason) or error from error
    except NoAnswerError as error:
        if timeout is None:
            raise
        raise TimeoutError(f"{argv[0]!r} took longer than {timeout:g} s, and its end was not seen") from error
    if timeout is not None:
        if code == _KILLED and took >= timeout:
            raise TimeoutError(f"{argv[0]!r} took longer than {timeout:g} s")
        if code in (125, 126, 127) and err.startswith(f"{_TIMEOUT}: ".encode()):
            raise _invocation(argv[0], code, err.decode("utf-8", "replace").strip())
    if code in (126, 127) and out.startswith(_RUNTIME_WORDS):
        reason = out.decode("utf-8", "replace").strip()
        raise refused(argv[0], reason) or EngineError(reason)
    return ExecResult(code, out, err)


def _run(
    engine: Engine, container: str, command: list[str], user: str, timeout: float | None, alive: Callable[[], bool]
) -> tuple[int, bytes, bytes, float]:
    """Exit code, stdout, stderr, and the seconds that it took."""
    limit = math.inf if timeout is None else timeout + _SLACK
    begin = time.monotonic()

    def watch() -> None:
        if time.monotonic() - begin > limit:
            raise NoAnswerError("the command's end was not seen")
        if not alive():
            time.sleep(_LAST_WORDS)
            if not reader.done.is_set():
                raise EngineError("the sandbox ended while a command ran in it")

    asked = {"Cmd": command, "User": user, "AttachStdout": True, "AttachStderr": True}
    ident = engine.ask("POST", f"/containers/{container}/exec", _NOT_RUN, asked)["Id"]
    reader = _Reader(engine.upgrade(f"/exec/{ident}/start", _NOT_RUN, {"Detach": False, "Tty": False}))
    reader.start()
    try:
        while not reader.done.wait(_LOOK_EVERY):
            watch()
    finally:
        reader.abandon()
    took = time.monotonic() - begin
    # The output may end before the command does: it closed both, or the engine has yet to note the end.
    while (found := engine.ask("GET", f"/exec/{ident}/json", _NOT_RUN))["Running"] or found["ExitCode"] is None:
        watch()
        time.sleep(0.005)
    return int(found["ExitCode"]), b"".join(reader.outputs[0]), b"".join(reader.outputs[1]), took


class _Reader(threading.Thread):
    """Takes in a command's output; a thread, so that a stream that never ends can be given up.

    Attributes:
        outputs: what came so far, from stdout and from stderr.
        done: set at the end.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(name="exec", daemon=True)
        self.outputs: tuple[list[bytes], list[bytes]] = ([], [])
        self.done = threading.Event()
        self._socket = connection

    def run(self) -> None:
        """The body of the thread."""
        try:
            with self._socket.makefile("rb") as stream:
                for output, data in frames(stream):
                    self.outputs[output == STDERR].append(data)
        except OSError:
            pass  # the connection was closed, here or there: what the command did is asked of the engine
        finally:
            self.done.set()

    def abandon(self) -> None:
        """Free the connection; a read in progress returns."""
        with suppress(OSError):  # it may have ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()


def refused(command: str, reason: str) -> SandboxError | None:
    """What the runtime's words mean for the command; None when they are about something else."""
    if "chdir to cwd" in reason or "initial working directory" in reason:  # runc's words, runsc's
        return CannotInvokeError(f"{command!r} cannot be executed: its working directory is not there")
    if "executable file not found" in reason or "no such file or directory" in reason:
        return CommandNotFoundError(f"there is no command {command!r} inside")
    if any(words in reason for words in ("permission denied", "exec format error", "is a directory")):
        return CannotInvokeError(f"{command!r} cannot be executed: {reason.rpartition(': ')[0] or reason}")
    return None


def _invocation(command: str, code: int, words: str) -> SandboxError:
    """What timeout(1) says: 127 not found, 126 cannot be invoked, 125 itself failed (it could not fork, say)."""
    if code == 127:
        return CommandNotFoundError(f"there is no command {command!r} inside")
    reason = words.rpartition(": ")[2]
    if code == 126:
        return CannotInvokeError(f"{command!r} cannot be executed: {reason}")
    return EngineError(f"{command!r} could not be run: {reason}")
