"""A command inside a container with its input and output passed on: the exec API over an upgraded connection.

The connection carries raw bytes both ways after the upgrade; without a terminal, output comes in the frames of
`docker_stream`. See the Docker Engine API, "Start an exec instance" and "Attach to a container".
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SandboxError
from sandbox.host.docker import Engine, RefusalError
from sandbox.isolation.base import Attached, WindowSize
from sandbox.isolation.docker import cgroup, logs

_CHUNK = 65536
_LOOK_EVERY = 0.5
"""Seconds between looks whether the container still runs."""
_LAST_WORDS = 1.0
"""Seconds that output may take to end after the container did."""
_END_TIMEOUT = 20.0
"""Seconds in which a command that was killed must be gone."""
_BROKEN_PIPE = 128 + 13
_KILLED = 128 + 9
_END_OF_INPUT = b"\x04"
"""What a terminal's user types for the end of input (termios(3), VEOF)."""

_DETACH_KEYS = ",".join(["ctrl-^", "ctrl-]"] * 4)
"""dockerd takes these for itself, and withholds the first of them until the next key. Its default begins with Ctrl-P,
which shells use; it cannot be switched off, so this is one that nobody types."""

_BEGIN = r"""
[ -z "$1" ] || stty rows "$1" cols "$2"
shift 2
case $1 in
*/*) file=$1 ;;
*)  file=
    IFS=:
    for place in $PATH; do
        [ -f "$place/$1" ] && file=$place/$1
        [ -f "$place/$1" ] && [ -x "$place/$1" ] && break
    done
    unset IFS ;;
esac
if [ ! -e "$file" ]; then echo 127; exit 127; fi
if [ ! -f "$file" ] || [ ! -x "$file" ]; then echo 126; exit 126; fi
echo "started $$"
unset PWD OLDPWD
exec "$@"
"""
"""Runs inside, before the command and in its process. The window has its size before the command looks at it, which
version 1.41 of the API cannot do; and the first line says the command's pid inside, or that it cannot be run."""

_END = r"""
while :; do
    found=
    for place in /proc/[0-9]*; do
        { read -r line <"$place/stat"; } 2>/dev/null || continue
        set -- "$1" ${line##*) }
        if [ "$5" = "$1" ] && [ "$2" != Z ]; then
            kill -9 "${place#/proc/}" 2>/dev/null
            found=1
        fi
    done
    [ "$found" ] || exit 0
done
"""
"""Kills a session by the pid of its leader, from inside: proc_pid_stat(5), the fields from the state on."""


def attach(
    engine: Engine,
    container: str,
    argv: Sequence[str],
    *,
    user: str,
    stdin: int | None,
    stdout: int,
    stderr: int,
    terminal: WindowSize | None,
    env: Sequence[tuple[str, str]],
    workdir: str | None,
    alive: Callable[[], bool],
    kernel_shared: bool,
) -> Attached:
    """Start a command in a running container; returns once it has begun.

    Args:
        engine: where the container is.
        container: its name.
        argv: the command.
        user: "uid:gid" inside.
        stdin: a descriptor to read its input from; None gives it an empty one.
        stdout: a descriptor for its output.
        stderr: a descriptor for its errors, unused with a terminal.
        terminal: the size of its terminal; None gives it none.
        env: entries added to the container's environment.
        workdir: absolute path; None for the container's.
        alive: whether the container still runs.
        kernel_shared: whether its processes are the host's too.

    Raises:
        EngineError, CommandNotFoundError, CannotInvokeError
    """
    if not argv:
        raise CommandNotFoundError("there is no command to run inside")
    size = ("", "") if terminal is None else (str(terminal.rows), str(terminal.columns))
    command = ["/bin/sh", "-c", _BEGIN, "sh", *size, *argv]
    try:
        asked = {
            "Cmd": command,
            "User": user,
            "Tty": terminal is not None,
            "AttachStdin": stdin is not None,
            "AttachStdout": True,
            "AttachStderr": True,
            "DetachKeys": _DETACH_KEYS,
            "Env": [f"{name}={value}" for name, value in env],
            "WorkingDir": workdir or "",
        }
        ident = engine.ask("POST", f"/containers/{container}/exec", "the command cannot be run", asked)["Id"]
        connection = _Connection(engine, ident, terminal=terminal is not None)
    except RefusalError as error:
        raise logs.refused(argv[0], error.reason) or error from error
    found = _Command(engine, container, ident, connection, user, alive, kernel_shared)
    try:
        found.begin(argv[0], stdin, (stdout, stderr))
    except BaseException:
        found.close()
        raise
    return found


class _Connection:
    """The upgraded connection of one command."""

    def __init__(self, engine: Engine, ident: str, *, terminal: bool) -> None:
        self.terminal = terminal
        self._socket = engine.upgrade(
            f"/exec/{ident}/start", "the command cannot be run", {"Detach": False, "Tty": terminal}
        )
        self._buffer = self._socket.makefile("rb")

    def read(self) -> tuple[int, bytes]:
        """(Output number, bytes) of what comes next; empty at the end."""
        if self.terminal:
            return 1, self._buffer.read1(_CHUNK)
        header = self._buffer.read(logs.HEADER.size)
        if len(header) < logs.HEADER.size:
            return 1, b""
        output, length = logs.HEADER.unpack(header)
        return output, self._buffer.read(length)

    def write(self, data: bytes) -> None:
        """Pass on input."""
        self._socket.sendall(data)

    def end_input(self) -> None:
        """Close the command's input; its output goes on. A terminal is told as a user would tell it."""
        if self.terminal:
            self.write(_END_OF_INPUT)  # dockerd takes a half-closed connection of a terminal for its end
        else:
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection; a read in progress returns."""
        with suppress(OSError):  # it may have ended
            self._socket.shutdown(socket.SHUT_RDWR)
        self._buffer.close()
        self._socket.close()


class _Command(Attached):
    """One command that runs inside."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        ident: str,
        connection: _Connection,
        user: str,
        alive: Callable[[], bool],
        host_pids: bool,
    ) -> None:
        self._engine = engine
        self._container = container
        self._exec = ident
        self._connection = connection
        self._user = user
        self._alive = alive
        self._host_pids = host_pids
        self._pid_inside: str | None = None
        self._broken = False
        self._failure: SandboxError | None = None
        self._closed = False
        self._begun = threading.Event()
        self._first = b""
        self._ended = threading.Event()
        self._code: int | None = None
        self._wake, self._waker = os.pipe()
        self._threads: list[threading.Thread] = []

    def begin(self, command: str, stdin: int | None, outputs: tuple[int, int]) -> None:
        """Take in the first line, then let bytes through in both directions."""
        self._run(self._pass_output, outputs)
        while not self._begun.wait(_LOOK_EVERY):
            self._look()
        words = self._first.decode("utf-8", "replace").strip()
        if not words.startswith("started "):
            raise self._not_begun(command, words)
        self._pid_inside = words.split()[1]
        # Not before: a terminal would echo what is typed ahead of the first line.
        if stdin is not None:
            self._run(self._pass_input, stdin)

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name=f"exec {self._exec[:12]}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _not_begun(self, command: str, words: str) -> Exception:
        if words == "127":
            return CommandNotFoundError(f"there is no command {command!r} inside")
        if words == "126":
            return CannotInvokeError(f"{command!r} cannot be executed: it is not an executable file")
        if not words and not self._alive():
            return EngineError("the sandbox ended before the command began")
        return logs.refused(command, words) or EngineError(f"the command could not be run: {words[:300]}")

    def _pass_output(self, outputs: tuple[int, int]) -> None:
        try:
            rest = early = b""
            while not self._begun.is_set():
                number, data = self._connection.read()
                if data and number == logs.STDERR:
                    early += data  # dockerd copies the two outputs apart: the command's errors may overtake the line
                    continue
                self._first += data
                line, found, after = self._first.partition(b"\n")
                # The runtime's words, where it could not even start the shell, may have no line's end.
                if found or not data:
                    self._first, rest = line or early, after
                    self._begun.set()
            self._give(outputs[1], early)
            while rest or (read := self._connection.read())[1]:
                number, data = (1, rest) if rest else read
                rest = b""
                self._give(outputs[number == logs.STDERR], data)
        except (OSError, ValueError, AttributeError):
            pass  # the connection was closed, here or there: what the command did is asked of the engine
        finally:
            self._begun.set()
            self._ended.set()

    def _give(self, descriptor: int, data: bytes) -> None:
        """Write it all; a reader that has gone ends the command, as SIGPIPE does where the descriptor is its own.

        What nobody reads any more is still taken in: gVisor's kernel ends no command whose output waits.
        """
        waiting = select.poll()
        waiting.register(descriptor, select.POLLOUT)
        waiting.register(self._wake, select.POLLIN)
        view = memoryview(data)
        while view and not self._broken:
            if self._wake in dict(waiting.poll()):
                return
            try:
                # No more than a pipe that can be written to takes for sure, so that a write never waits (pipe(7)).
                view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]
            except BlockingIOError:
                continue
            except OSError:
                self._broken = True
                self._run(self._end_unread)

    def _end_unread(self) -> None:
        try:
            self._end()
        except SandboxError as error:
            self._failure = error

    def _pass_input(self, stdin: int) -> None:
        waiting = select.poll()
        waiting.register(stdin, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        try:
            while True:
                ready = dict(waiting.poll())
                if self._wake in ready:
                    return
                try:
                    data = os.read(stdin, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""  # a terminal that hung up
                if not data:
                    self._connection.end_input()
                    return
                self._connection.write(data)
        except (OSError, ValueError):
            return  # the command ended, or closed its input: nobody takes more

    def _look(self) -> None:
        """Raise when the container has ended and the command's output does not."""
        if not self._alive() and not self._ended.wait(_LAST_WORDS):
            raise EngineError("the sandbox ended while a command ran in it")

    def _inspect(self) -> dict[str, Any] | None:
        return self._engine.look(f"/exec/{self._exec}/json", "the command's state cannot be read")

    def resize(self, size: WindowSize) -> None:
        if not self._connection.terminal or self._ended.is_set():
            return
        with suppress(RefusalError):
            path = f"/exec/{self._exec}/resize?h={size.rows}&w={size.columns}"
            self._engine.ask("POST", path, "the terminal cannot be resized")

    def wait(self) -> int:
        while not self._ended.wait(_LOOK_EVERY):
            self._look()
        while self._code is None:
            found = self._inspect()
            if found is None:
                raise EngineError("the sandbox ended while a command ran in it")
            if not found["Running"] and found["ExitCode"] is not None:
                self._code = int(found["ExitCode"])
                break
            if not self._alive():
                raise EngineError("the sandbox ended while a command ran in it")
            time.sleep(0.005)
        if self._failure is not None:
            raise self._failure
        if self._code == _KILLED and not self._broken and not self._alive():
            raise EngineError("the sandbox ended while a command ran in it")
        return _BROKEN_PIPE if self._broken else self._code

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._waker, b"x")
        try:
            if self._code is None and self._alive():
                self._end()
        finally:
            self._connection.close()
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(_LAST_WORDS)
            os.close(self._wake)
            os.close(self._waker)

    def _end(self) -> None:
        """Kill the command and what it started, its session: the API has no call for that.

        Raises:
            EngineError: it does not die.
        """
        deadline = time.monotonic() + _END_TIMEOUT
        while (found := self._inspect()) is not None and found["Running"] and self._alive():
            if time.monotonic() > deadline:
                raise EngineError("the command inside does not die")
            if self._host_pids and found["Pid"]:
                if not cgroup.kill_session(found["ContainerID"], found["Pid"]):
                    time.sleep(0.005)
            elif self._pid_inside is not None:
                kill = ["/bin/sh", "-c", _END, "sh", self._pid_inside]
                logs.run(self._engine, self._container, kill, user=self._user, timeout=_END_TIMEOUT, alive=self._alive)
            else:
                time.sleep(0.02)
