"""The keeper: a small process outside the sandbox that writes the workload's output to the log.

Every sandbox has one, at every level; its role is that of conmon(8) for a container. It is forked from the command that
creates the sandbox, and keeps running after that command has ended. It

- reads the workload's stdout and stderr from its sources and writes them to the log (format below; `log` reads it);
- stops reading, so that the workload blocks, while the command in the foreground is too far behind with showing the
  output; nothing is lost in that case (`Keeper.output`);
- waits for the workload to end, and writes its exit code to the file `exit` once the log is complete;
- then does what `Keeper.detach` asked for: records the end, withdraws published ports, or removes the sandbox.

When the command detaches, the keeper executes the bare Python interpreter with this file alone, which has 4 MiB
of its own. Therefore this module imports little at its top, and nothing from this package.

A level starts the keeper in `create`, or in `start` before the workload begins:

    self.keeper = supervision.launch(record, sources, ...)

There is one `Source` per descriptor: a pipe, a socket, or anything else that poll(2) accepts and that reaches an end of
file. STDOUT and STDERR carry plain bytes, MULTIPLEXED carries both in Docker's framing. A source may have a mark
instead of an end of file, as a virtual machine's port does: it ends at the mark, which is followed by a line with the
exit code. The keeper then closes the descriptor, which tells the other side that everything was read. The keeper owns
the descriptors; `launch` closes the caller's copies.

The keeper learns of the workload's end in one of these ways:

- `spawn`: a function, called in the keeper, that starts the init as the keeper's child and returns its pid, which
  becomes `Keeper.child`; the caller must call `Keeper.wait_ready` before it lets the init run;
- `pid`: another process, watched by a pidfd; its exit code can be read from the descriptor `status`, as decimal digits;
- neither of them: the sandbox has ended when all its sources have ended;
- `engine`: in addition to the last two, dockerd is asked for the exit code.

After the end the keeper reads on until the sources end, or until nothing has arrived for `linger` seconds. Then it
writes `exit`. The exit code in it is None unless the init was a child, or `status`, a mark or dockerd supplied it;
readers then ask the engine. To remove a sandbox, call `supervision.silence` before its processes are killed and
`supervision.wait_gone` after.

The log consists of the files `log.1` and `log`, of PART_BYTES at most each; when a new file begins, the older one is
dropped. A file begins with PART (magic, number of bytes that the workload had written before). Then come frames: FRAME
(stream, length, nanoseconds since the epoch), followed by that many bytes exactly as they were read, at most CHUNK. A
frame of stream LOST has no bytes: its length is the number of bytes that could not be written because the disk was
full. Only the last frame can be truncated, if the keeper was killed.

Sources: fcntl(2) (F_SETLK, preserved across exec), pipe(7), unix(7), pidfd_open(2), eventfd(2).
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import struct
import sys
import time

TYPE_CHECKING = False
"""Stands in for `typing.TYPE_CHECKING`: importing `typing` would cost memory in each keeper."""
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

else:
    import _signal as signal  # without the enumerations of `signal`, which take 0.8 MB in each keeper

MULTIPLEXED, STDOUT, STDERR = 0, 1, 2
"""The kinds of sources; STDOUT and STDERR are also the streams of the log."""
LOST = 0
"""The stream of a frame that counts bytes which could not be written."""
PART = struct.Struct("<8sQ")
MAGIC = b"sbxlog1\n"
FRAME = struct.Struct("<BxxxIQ")
CHUNK = 65536
PART_BYTES = 32 * 1024 * 1024
"""The largest size in bytes of each of the log's two files, frames included."""
LOG, OLDER = "log", "log.1"
EXIT = "exit"
LOCK = "keeper"
"""Files in the sandbox's directory: the log, how the sandbox ended, and the lock that a running keeper holds."""

NOTHING, NOTE, NOTIFY, REMOVE = "nothing", "note", "notify", "remove"
"""The keeper's actions at the end: nothing, since the command acts; note it in the record; have the manager note it
and withdraw published ports; remove the sandbox."""

HANDLED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGALRM, signal.SIGCHLD, signal.SIGWINCH),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
"""Signals that a command may have handlers for; the keeper must not run them."""
_DOCKER = struct.Struct(">BxxxL")
_INIT_FAILED = b"[FATAL tini ("
_PATIENCE = 2.0
"""Seconds to wait for something that normally takes milliseconds."""
_RETRY = 0.5
"""Seconds between attempts to reach a dockerd that was restarted."""
_LOOK = 0.01
"""Seconds between checks whether dockerd has noticed the end."""
_KEPT_ENV = ("PATH", "HOME", "LANG")
_FINISH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.lifecycle import background; "
    "background.finish(*sys.argv[2:])"
)


def attach_path(container: str) -> str:
    """Return the path of the API call for a container's output: Docker Engine API, "Attach to a container"."""
    return f"/containers/{container}/attach?stream=1&stdout=1&stderr=1"


def run_forked(state: dict[str, Any], spawn: Callable[[], int] | None, pid: int | None) -> NoReturn:
    """Run the keeper in the forked process; never returns to the command's code."""
    control = state["control"]
    try:
        gc.disable()  # a collection would touch, and thereby copy, most pages of the command
        child = 0
        if spawn is not None:
            child = pid = spawn()
            os.write(control, b"P%d" % child)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGQUIT, signal.SIGWINCH):
            signal.signal(number, signal.SIG_DFL)
        state["child"] = bool(child)
        state["pidfd"] = -1
        if pid is not None:
            try:
                state["pidfd"] = os.pidfd_open(pid)
            except ProcessLookupError:
                state["gone"] = True
        state["pid"] = pid or 0
        loop = _Loop(state)
        loop.set_up()
        signal.signal(signal.SIGUSR1, loop.on_removal)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.write(control, b"R")
        loop.run()
    except OSError as error:
        os.write(control, f"E{error.errno or 0} {error.strerror or error}".encode())
    except BaseException as error:
        os.write(control, f"E0 the keeper failed: {type(error).__name__} {error}".encode())
    finally:
        os._exit(1)


class _Log:
    """The writer of the log. Its fields are kept in the state, so that they survive an exec."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._path = f"{state['directory']}/{LOG}"
        if "log" not in state:
            state.update(position=0, lost=0, part=PART_BYTES, begin=0)
            state["log"], state["size"] = self._make(self._path)

    @property
    def position(self) -> int:
        """Bytes of output received so far."""
        return int(self._state["position"])

    def room(self, size: int) -> bool:
        """Return whether `size` more bytes fit into the newest file."""
        return bool(self._state["size"] + 2 * FRAME.size + size <= self._state["part"])

    def may_rotate(self, acknowledged: int) -> bool:
        """Return whether the reader has read everything that a rotation would drop."""
        return bool(acknowledged >= self._state["begin"])

    def rotate(self) -> None:
        """Begin a new file and drop the older of the two; if the disk has no room for it, keep the current one."""
        try:
            made, size = self._make(f"{self._path}.new")
        except OSError:
            return
        os.rename(self._path, f"{self._state['directory']}/{OLDER}")
        os.rename(f"{self._path}.new", self._path)
        os.close(self._state["log"])
        self._state.update(log=made, size=size, begin=self.position)

    def append(self, stream: int, data: bytes) -> None:
        """Write a frame; if the disk is full, count the lost bytes in a frame of their own as soon as it has room."""
        state = self._state
        head = FRAME.pack(stream, len(data), time.time_ns())
        if state["lost"]:
            head = FRAME.pack(LOST, state["lost"], time.time_ns()) + head
        size = len(head) + len(data)
        try:
            if os.writev(state["log"], [head, data]) != size:
                os.ftruncate(state["log"], state["size"])
                raise OSError
        except OSError:
            state["lost"] = min(state["lost"] + len(data), 0xFFFFFFFF)
        else:
            state["size"] += size
            state["lost"] = 0
        state["position"] += len(data)

    def _make(self, path: str) -> tuple[int, int]:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, PART.pack(MAGIC, self._state["position"]))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, PART.size


class _Loop:
    """The keeper's event loop. `state` holds everything that must survive an exec."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.log = _Log(state)
        self.acknowledged = 0
        self.paused = False
        self.ended = False
        self.poller = select.poll()
        state.setdefault("init_said", b"")

    def set_up(self) -> None:
        """Take the lock, and close everything else that the command had open: terminal, locks, pipes."""
        state = self.state
        lock = f"{state['directory']}/{LOCK}"
        state["lock"] = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1, 2):
            if descriptor not in self.descriptors():
                os.dup2(null, descriptor)
        before = 2
        for descriptor in [*sorted(one for one in self.descriptors() if one > 2), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(before + 1, descriptor)
            before = descriptor
        fcntl.lockf(state["lock"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chdir("/")

    def descriptors(self) -> list[int]:
        """Return the descriptors that the keeper uses."""
        state = self.state
        named = [state[name] for name in ("control", "wake", "status", "pidfd", "lock", "log")]
        return [one for one in named if one >= 0] + [source[0] for source in state["sources"]]

    def on_removal(self, _number: int, _frame: object) -> None:
        """Handle SIGUSR1: the sandbox is being removed, so the end is not written down."""
        self.state["action"] = ""
        if self.ended:
            os._exit(0)

    def run(self) -> NoReturn:
        """Write the output to the log until the sandbox ends; then report the end and do the action asked for."""
        state = self.state
        for descriptor in (state["control"], state["pidfd"]):
            if descriptor >= 0:
                self.poller.register(descriptor, select.POLLIN)
        self._listen()
        while not self.ended:
            if "gone" in state or (not state["sources"] and state["pidfd"] < 0):
                self._end()
                break
            cut_off = state["engine"] and not state["sources"]
            if not (found := self.poller.poll(_RETRY * 1000 if cut_off else None)):
                self._reconnect()
            for descriptor, _ in found:
                if descriptor == state["control"]:
                    self._receive()
                elif descriptor == state["pidfd"]:
                    self._end()
                    break
                else:
                    self._read(descriptor)
        while state["control"] >= 0 and state["action"] != "":
            self.poller.poll()
            self._receive()
        self._finish()

    def _listen(self) -> None:
        for source in self.state["sources"]:
            self.poller.register(source[0], select.POLLIN)

    def _read(self, descriptor: int, *, last: bool = False) -> None:
        """Copy from a source to the log, or pause all sources if the reader in the foreground is too far behind."""
        if self.paused:
            return
        if not last and not self.log.room(CHUNK):
            if self.state["hold"] and not self.log.may_rotate(self.acknowledged):
                self.paused = True
                for source in self.state["sources"]:
                    self.poller.unregister(source[0])
                return
            self.log.rotate()
        (source,) = (one for one in self.state["sources"] if one[0] == descriptor)
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a connection that was reset
            data = b""
        at_end = not data
        if source[3]:
            data, code = _marked(source[2], source[3], data)
            if code is not None:
                at_end, self.state["reported"] = True, code
        if data:
            self._append(source, data)
        if at_end:
            self._append_init_message()
            self.poller.unregister(descriptor)
            self.state["sources"].remove(source)
            os.close(descriptor)

    def _append(self, source: list[Any], data: bytes) -> None:
        if source[1] == MULTIPLEXED:
            for stream, part in demultiplexed(source[2], data):
                self._append_of_engine(stream, part)
        else:
            self.log.append(source[1], data)
        if self.state["hold"]:
            self._wake()

    def _append_of_engine(self, stream: int, part: bytes) -> None:
        """Append a part of a container's output, and put the init's message that it cannot start into our words.

        tini(1) writes that message in pieces, before anything else is written.
        """
        if stream == STDERR and self.log.position == 0:
            said = self.state["init_said"] = self.state["init_said"] + part
            begins = said.startswith(_INIT_FAILED) or _INIT_FAILED.startswith(said)
            if not begins or b"\n" in said or len(said) > CHUNK:
                self._append_init_message()
            return
        self._append_init_message()
        self.log.append(stream, part)

    def _append_init_message(self) -> None:
        if self.state["init_said"]:
            self.log.append(STDERR, _in_our_words(self.state["init_said"]))
            self.state["init_said"] = b""

    def _wake(self) -> None:
        if self.state["wake"] >= 0:
            try:
                os.eventfd_write(self.state["wake"], 1)
            except BlockingIOError:
                return

    def _receive(self) -> None:
        """Handle a message from the command; an end of file means that the command has ended."""
        state = self.state
        message = self._read_control()
        kind, rest = message[:1], message[1:].decode("ascii")
        if kind == b"A":
            self.acknowledged = int(rest)
        else:
            state["hold"] = False
        if kind in (b"D", b""):
            if state["action"] != "":
                state["action"] = rest if kind == b"D" else state["orphan"]
            self.poller.unregister(state["control"])
            os.close(state["control"])
            os.close(state["wake"])
            state["control"] = state["wake"] = -1
            if kind == b"" and state["action"] == REMOVE:
                self._finish()  # the command died before the sandbox it was to start in the background was ready
            if not self.ended:
                self._slim_down()
        if self.paused and (not state["hold"] or self.log.may_rotate(self.acknowledged)):
            self.paused = False
            self._listen()

    def _read_control(self) -> bytes:
        """Return a message from the command; empty if its end is closed and no message is left.

        If the command closed its end without reading all of ours, the kernel reports ECONNRESET first, and only then
        the messages that the command sent before it.
        """
        for _ in range(2):
            try:
                return os.read(self.state["control"], 64)
            except ConnectionResetError:
                continue
            except OSError:
                break
        return b""

    def _end(self) -> None:
        """Read the remaining output after the sandbox has ended, find out the exit code, and write it down."""
        state = self.state
        if self.paused:
            self.paused = False
            self._listen()
        for descriptor in (state["control"], state["pidfd"]):
            if descriptor >= 0:
                self.poller.unregister(descriptor)
        left = 0 if state["linger"] else sum(map(_capacity, (source[0] for source in state["sources"])))
        stop = self.log.position + left
        while state["sources"] and (ready := self.poller.poll(state["linger"] * 1000)):
            if left and self.log.position >= stop:
                break  # a process that outlived the workload keeps writing
            for descriptor, _ in ready:
                self._read(descriptor, last=True)
        code = self._code()
        state["code"] = "" if code is None else str(code)
        self.ended = True  # from here on `on_removal` exits
        if state["action"] != "":
            self._note(code)
        if state["control"] >= 0:
            self.poller = select.poll()
            self.poller.register(state["control"], select.POLLIN)
            try:
                os.write(state["control"], f"X{state['code']}".encode())
            except OSError:
                return

    def _code(self) -> int | None:
        """Return the exit code in a shell's terms: 128+n for signal n; None if it is not known."""
        state = self.state
        if state["child"]:
            code = os.waitstatus_to_exitcode(os.waitpid(state["pid"], 0)[1])
            return code if code >= 0 else 128 - code
        if state["status"] >= 0:
            poller = select.poll()
            poller.register(state["status"], select.POLLIN)
            if poller.poll(_PATIENCE * 1000):
                state["reported"] = os.read(state["status"], 16)
        reported = state.get("reported", b"")
        if reported.isdigit():
            return int(reported)
        return self._ask_exit_code() if state["engine"] else None

    def _ask_exit_code(self) -> int | None:
        """Ask dockerd for the exit code, and whether there was an OOM kill: the control group is gone by now."""
        import json

        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            answer, text = self._ask(f"GET /containers/{self.state['engine'][1]}/json"), b""
            try:
                while block := answer.recv(CHUNK):
                    text += block
                found = json.loads(text.partition(b"\r\n\r\n")[2])["State"]
                if not found["Running"]:
                    self.state["oom_killed"] = bool(found["OOMKilled"])
                    return int(found["ExitCode"])
            except OSError:
                pass  # it is being restarted
            except (ValueError, KeyError, TypeError):
                return None
            finally:
                answer.close()
            time.sleep(_LOOK)
        return None

    def _note(self, code: int | None) -> None:
        import json

        state = self.state
        oom = self._oom_kills()
        reason = "out of memory" if oom and code == 137 else "killed by a signal" if (code or 0) > 128 else "exited"
        text = json.dumps({"code": code, "time": time.time(), "oom_killed": oom, "reason": reason})
        path = f"{state['directory']}/{EXIT}"
        try:
            made = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.write(made, text.encode("ascii"))
            os.close(made)
            os.rename(f"{path}.new", path)
        except OSError:
            return  # it has been removed, and its directory with it

    def _reconnect(self) -> None:
        """Attach anew to a container whose stream ended before the container did; output in between is lost."""
        answer = self._ask(f"POST {attach_path(self.state['engine'][1])}", "Connection: Upgrade\r\nUpgrade: tcp\r\n")
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n") and (byte := answer.recv(1)):
                head += byte
            if head.startswith(b"HTTP/1.1 101"):
                answer.settimeout(None)
                descriptor = answer.detach()
                self.state["sources"].append([descriptor, MULTIPLEXED, [0, 0, b""], b""])
                self.poller.register(descriptor, select.POLLIN)
        except OSError:
            return
        finally:
            answer.close()

    def _ask(self, what: str, headers: str = "") -> Any:
        """Send a request to dockerd and return the connection; reading from it fails if dockerd does not answer."""
        import _socket  # without what `socket` loads beside it: 0.4 MiB

        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(self.state["engine"][0])
            connection.send(f"{what} HTTP/1.0\r\n{headers}\r\n".encode())
        except OSError:
            pass
        return connection

    def _oom_kills(self) -> bool | None:
        """Return whether the kernel killed one of its processes when memory ran out; None if that cannot be seen."""
        if "oom_killed" in self.state:
            return bool(self.state["oom_killed"])
        try:
            with open(self.state["events"], encoding="ascii") as stream:
                found = dict(line.split() for line in stream)
            return int(found["oom_kill"]) > 0
        except (OSError, ValueError, KeyError):
            return None

    def _slim_down(self) -> None:
        """Execute the bare interpreter with this file; if that fails, continue as the forked process."""
        import marshal

        # A handler does not survive exec(2), and SIGUSR1's default action is to terminate; a blocked signal waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
        for descriptor in self.descriptors():
            os.set_inheritable(descriptor, True)
        program = os.path.abspath(__file__)
        data = marshal.dumps(self.state).hex()
        try:
            _execute(["-I", "-S", program, f"sbx-{self.state['ident']}", data])
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))

    def _finish(self) -> NoReturn:
        state = self.state
        action = state["action"]
        if action not in (NOTE, NOTIFY, REMOVE):
            os._exit(0)
        os.set_inheritable(state["lock"], True)  # a concurrent removal still finds this process by its lock
        act(f"sbx-{state['ident']}", state["code"], action)


def act(label: str, code: str, action: str) -> NoReturn:
    """Become `lifecycle.background.finish` with these arguments, by exec."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # The bare interpreter is enough for the store; the other actions need the site packages.
    options = ["-I", "-S"] if action == NOTE else ["-I"]
    _execute([*options, "-c", _FINISH, package, label, code, action])
    os._exit(1)


def _execute(arguments: list[str]) -> None:
    env = {name: text for name, text in os.environ.items() if name in _KEPT_ENV or name.startswith("SANDBOX_")}
    os.execve(sys.executable, [sys.executable, *arguments], env)  # noqa: S606 - no shell is the point


def _capacity(descriptor: int) -> int:
    """Return a pipe's capacity in bytes; a guess for anything else."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 1 << 20


def _in_our_words(said: bytes) -> bytes:
    """Replace the init's message that it cannot execute the workload (tini(1)) by the one of the other levels."""
    if not said.startswith(_INIT_FAILED):
        return said
    command, failed, reason = said.rstrip(b"\n").decode("utf-8", "replace").rpartition(" failed: ")
    name = command.partition(" exec ")[2]
    if not failed or not name:
        return said
    if reason == os.strerror(errno.ENOENT):
        return f"sandbox: there is no command {name!r} inside\n".encode()
    return f"sandbox: {name!r} cannot be executed: {reason}\n".encode()


def demultiplexed(begun: list[Any], data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (stream, bytes) from data in Docker's framing: Docker Engine API, "Attach to a container".

    Args:
        begun: the frame that the data before left incomplete: stream, missing bytes, part of a header. It is updated.
        data: the bytes received.
    """
    while data:
        if not begun[1]:
            head = begun[2] + data[: _DOCKER.size - len(begun[2])]
            data = data[_DOCKER.size - len(begun[2]) :]
            if len(head) < _DOCKER.size:
                begun[2] = head
                return
            begun[0], begun[1] = _DOCKER.unpack(head)
            begun[2] = b""
        part, data = data[: begun[1]], data[begun[1] :]
        begun[1] -= len(part)
        if part:
            yield (STDERR if begun[0] == STDERR else STDOUT), part


def _marked(begun: list[Any], mark: bytes, data: bytes) -> tuple[bytes, bytes | None]:
    """Return the bytes before a mark and the line that follows the mark; None as long as that has not arrived.

    Args:
        begun: its last field holds bytes back that may be the beginning of the mark. It is updated.
        mark: the bytes that end the source.
        data: the bytes received; empty if the source ended without the mark.
    """
    held, begun[2] = begun[2], b""
    if not data:
        return held, None
    data = held + data
    at = data.find(mark)
    if at >= 0 and data.endswith(b"\n"):
        return data[:at], data[at + len(mark) : -1]
    if at < 0:
        at = next(at for at in range(max(0, len(data) - len(mark) + 1), len(data) + 1) if mark.startswith(data[at:]))
    begun[2] = data[at:]
    return data[:at], None


def _main(data: str) -> NoReturn:
    """Continue after the exec, from the state in hexadecimal."""
    import marshal

    loop = _Loop(marshal.loads(bytes.fromhex(data)))  # noqa: S302 - our own argument
    for descriptor in loop.descriptors():
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGUSR1, loop.on_removal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))
    try:
        loop.run()
    finally:
        os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[2])
