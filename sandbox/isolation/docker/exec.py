"""The relay's backend for a command inside a container: Docker's exec API over an upgraded connection.

The connection carries raw bytes in both directions; without a terminal, output arrives in Docker's frames. See the
Docker Engine API, "Start an exec instance" and "Attach to a container".
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SandboxError
from sandbox.host.docker import Engine, RefusalError
from sandbox.isolation.base import WindowSize
from sandbox.isolation.docker import cgroup
from sandbox.isolation.keeper import STDOUT, demultiplexed
from sandbox.isolation.relay import CHUNK, Backend

_LOOK_EVERY = 0.5
"""Seconds between checks that the container runs: dockerd does not end a command's output when gVisor dies."""
_OUTPUT_END = 1.0
"""Seconds to wait for the output to end after the container has."""
_END_TIMEOUT = 20.0
"""Seconds to wait for a command that was killed."""
_MOMENT = 0.2
"""Seconds to wait for the sandbox to end after a command was killed."""
_BROKEN_PIPE = 128 + 13
_KILLED = 128 + 9
_NOT_RUN = "the command cannot be run"

_DETACH_KEYS = ",".join(["ctrl-^", "ctrl-]"] * 4)
"""dockerd handles these keys itself, and delays the first of them until the next key. The default begins with Ctrl-P,
which shells use. It cannot be switched off, so this is a sequence that nobody types."""

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
"""Runs inside, in the command's process before it. It sets the terminal's size before the command starts, which version
1.41 of the API cannot do. The first line of output is the command's pid inside, or says why it cannot be run."""

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
"""Kills a session from inside, by the pid of its leader (proc_pid_stat(5), the fields from the state on)."""


def start(
    engine: Engine,
    container: str,
    argv: Sequence[str],
    *,
    user: str,
    has_input: bool,
    terminal: WindowSize | None = None,
    env: Sequence[tuple[str, str]] = (),
    workdir: str | None = None,
    alive: Callable[[], bool],
    kernel_shared: bool,
) -> ContainerBackend:
    """Start a command in a running container; returns once it has begun.

    Args:
        engine: of the container.
        container: its name.
        argv: the command.
        user: "uid:gid" inside.
        has_input: whether input will be written to it; otherwise its input is empty.
        terminal: the size of its terminal; None for no terminal.
        env: entries added to the container's environment.
        workdir: an absolute path; None for the container's.
        alive: returns whether the container still runs.
        kernel_shared: whether its processes are processes of the host.

    Raises:
        EngineError, CommandNotFoundError, CannotInvokeError
    """
    if not argv:
        raise CommandNotFoundError("no command to run inside was given")
    size = ("", "") if terminal is None else (str(terminal.rows), str(terminal.columns))
    asked = {
        "Cmd": ["/bin/sh", "-c", _BEGIN, "sh", *size, *argv],
        "User": user,
        "Tty": terminal is not None,
        "AttachStdin": has_input,
        "AttachStdout": True,
        "AttachStderr": True,
        "DetachKeys": _DETACH_KEYS,
        "Env": [f"{name}={value}" for name, value in env],
        "WorkingDir": workdir or "",
    }
    try:
        ident = engine.ask("POST", f"/containers/{container}/exec", _NOT_RUN, asked)["Id"]
        stream = engine.upgrade(f"/exec/{ident}/start", _NOT_RUN, {"Detach": False, "Tty": terminal is not None})
    except RefusalError as error:
        raise refused(argv[0], error.reason) or error from error
    found = ContainerBackend(engine, container, ident, stream, terminal is not None, user, alive, kernel_shared)
    try:
        found.begin(argv[0])
    except BaseException:
        with suppress(SandboxError):
            found.end()
        found.close()
        raise
    return found


class ContainerBackend(Backend):
    """A command that runs inside a container."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        ident: str,
        stream: socket.socket,
        terminal: bool,
        user: str,
        alive: Callable[[], bool],
        host_pids: bool,
    ) -> None:
        self._engine = engine
        self._container = container
        self._exec = ident
        self._socket = stream
        self._terminal = terminal
        self._user = user
        self._alive = alive
        self._host_pids = host_pids
        self._pid_inside = ""
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._begun: list[Any] = [0, 0, b""]
        """The frame that is incomplete so far, see `demultiplexed`."""
        self._killer: threading.Thread | None = None
        self._failure: SandboxError | None = None
        self._poller = select.poll()
        self._poller.register(stream, select.POLLIN)

    def begin(self, command: str) -> None:
        """Read the first line of output, which `_BEGIN` writes.

        Raises:
            EngineError, CommandNotFoundError, CannotInvokeError: the command did not start.
        """
        first, errors = b"", []
        while b"\n" not in first:
            stream, data = self.read()
            if stream == STDOUT:
                first += data
            else:
                errors.append((stream, data))  # dockerd copies the streams separately, so stderr may come first
            # If the runtime could not even start the shell, its message may have no line feed.
            if not data:
                break
        line, _, rest = first.partition(b"\n")
        words = (line or b"".join(data for _, data in errors)).decode("utf-8", "replace").strip()
        if not words.startswith("started "):
            raise self._not_begun(command, words)
        self._pid_inside = words.split()[1]
        self._pieces.extendleft([(STDOUT, rest)] if rest else [])
        self._pieces.extendleft(reversed(errors))

    def _not_begun(self, command: str, words: str) -> SandboxError:
        if words == "127":
            return CommandNotFoundError(f"there is no command {command!r} inside")
        if words == "126":
            return CannotInvokeError(f"{command!r} cannot be executed: Permission denied")  # execve(2), EACCES
        if not words and not self._alive():
            return EngineError("the sandbox ended before the command began")
        return refused(command, words) or EngineError(f"the command could not be run: {words[:300]}")

    def read(self) -> tuple[int, bytes]:
        while not self._pieces:
            data = self._receive()
            if not data:
                return STDOUT, b""
            self._pieces.extend([(STDOUT, data)] if self._terminal else demultiplexed(self._begun, data))
        return self._pieces.popleft()

    def _receive(self) -> bytes:
        while not self._poller.poll(_LOOK_EVERY * 1000):
            if not self._alive() and not self._poller.poll(_OUTPUT_END * 1000):
                return b""
        try:
            return self._socket.recv(CHUNK)
        except OSError:
            return b""

    def write(self, data: bytes) -> bool:
        try:
            self._socket.sendall(data)
        except OSError:
            return False  # the command ended or closed its input
        return True

    def close_write(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def resize(self, size: WindowSize) -> None:
        with suppress(RefusalError):
            path = f"/exec/{self._exec}/resize?h={size.rows}&w={size.columns}"
            self._engine.ask("POST", path, "the terminal cannot be resized")

    def close_read(self, stream: int) -> None:
        # No single stream of dockerd's connection can be closed, so the command is killed as SIGPIPE would. Its output
        # is still read meanwhile: gVisor's kernel does not end a command whose output waits.
        del stream
        if self._killer is None:
            self._killer = threading.Thread(target=self._kill_quietly, name="end", daemon=True)
            self._killer.start()

    def _kill_quietly(self) -> None:
        try:
            self._kill()
        except SandboxError as error:
            self._failure = error

    def end(self) -> None:
        try:
            self._kill()
        finally:
            with suppress(OSError):  # it may have ended
                self._socket.shutdown(socket.SHUT_RDWR)

    def _kill(self) -> None:
        """Kill the command and its children, which form a session; the API has no call for that.

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
            elif self._pid_inside:
                self._kill_inside()
            else:
                time.sleep(0.02)

    def _kill_inside(self) -> None:
        """Kill it by running another command inside, if its pid is not a process of this host."""
        argv = ["/bin/sh", "-c", _END, "sh", self._pid_inside]
        with suppress(CommandNotFoundError, CannotInvokeError):  # gVisor's errors if the sandbox has just ended
            killer = start(
                self._engine,
                self._container,
                argv,
                user=self._user,
                has_input=False,
                alive=self._alive,
                kernel_shared=self._host_pids,
            )
            while killer.read()[1]:
                pass
            killer.close()

    def _inspect(self) -> dict[str, Any] | None:
        return self._engine.look(f"/exec/{self._exec}/json", "the command's state cannot be read")

    def exit_code(self, timeout: float | None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._killer is not None:
            self._killer.join()
        # The output may end before the command: it closed both streams, or the engine has yet to note its end.
        while (found := self._inspect()) is not None and (found["Running"] or found["ExitCode"] is None):
            if not self._alive():
                found = None
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.005)
        if self._failure is not None:
            raise self._failure
        if self._killer is not None:
            return _BROKEN_PIPE
        if found is None or (found["ExitCode"] == _KILLED and self._sandbox_ends()):
            raise EngineError("the sandbox ended while a command ran in it")
        return int(found["ExitCode"])

    def _sandbox_ends(self) -> bool:
        """Return whether the sandbox ends too, a moment later: an init dies last in its pid namespace."""
        deadline = time.monotonic() + _MOMENT
        while self._alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        if self._killer is not None:
            self._killer.join()
        self._socket.close()


def refused(command: str, reason: str) -> SandboxError | None:
    """Turn the runtime's error message into an exception; None if it is about something else."""
    if "chdir to cwd" in reason or "initial working directory" in reason:  # of runc, of runsc
        return CannotInvokeError(f"{command!r} cannot be executed: its working directory is not there")
    if "executable file not found" in reason or "no such file or directory" in reason:
        return CommandNotFoundError(f"there is no command {command!r} inside")
    if any(words in reason for words in ("permission denied", "exec format error", "is a directory")):
        return CannotInvokeError(f"{command!r} cannot be executed: {reason.rpartition(': ')[0] or reason}")
    return None
