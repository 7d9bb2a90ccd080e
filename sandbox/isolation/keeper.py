"""The keeper of a sandbox: a small process outside the walls that reads what the workload writes, and keeps it.

There is one per sandbox, at every level, as conmon(8) is for a container. It is a fork of the command that makes the
sandbox, and outlives it. It

- reads stdout and stderr from its sources, and writes them to the log (the format is below, `log` reads it);
- holds the workload back when the command that shows the output is slow: nothing is lost on that way (`Keeper.output`);
- learns how the workload ends, and notes that in the file `exit` once the log is complete;
- does then what `Keeper.detach` asked for: note the end in the record, withdraw published ports, remove the sandbox.

Once it is told that nobody follows in the foreground it becomes, by exec, the bare interpreter with this file alone:
3 MiB (PSS). So this module imports little at its top, and nothing of this package.

How a level connects itself:

    self.keeper = supervision.launch(record, sources, ...)       in `create`, or in `start` before the workload begins

with one `Source` per descriptor: a pipe, a socket, anything that poll(2) takes and that has an end. STDOUT and STDERR
are plain bytes, MULTIPLEXED is Docker's framing of both. A source with a mark has ended where the mark comes, which a
line with the exit code follows (a virtual machine's port has no end of its own); its descriptor is closed then, and
the other side sees that everything was read. The keeper takes the descriptors over (the caller's copies are closed).
How it learns of the end:

- `spawn`: called in the keeper, makes the init as the keeper's child, and returns its pid; `Keeper.child` is that
  (then `Keeper.settled` has to be called, before the init is let go);
- `pid`: some other process, watched by a pidfd; with `status`, a descriptor from which its exit code can be read then,
  as decimal digits;
- neither: the sandbox has ended when its sources have;
- `engine`: beside the last two, dockerd is asked then.

After the end it reads on until the sources end, or nothing has come for `linger` seconds. Then `exit` is written; its
code is None unless the init was a child or `status` told, and whoever asks takes the code from the engine. What is
left to a level is `Sandbox.keeper`; `logs`, `output` and the command line's side are the same everywhere (`base`).
When a sandbox is removed: `hush` before its processes are killed, `dismiss` after.

The log: files `log.1` and `log`, each PART_BYTES at most, the older one dropped when a new one begins. A file begins
with PART (magic, number of bytes that the workload wrote before it). Then frames: FRAME (stream, length, nanoseconds
since the epoch) and as many bytes, exactly as they were read, up to CHUNK at a time. A frame of stream LOST has no
bytes: its length is the number of those that could not be written, for want of room on the disk. A frame that is cut
off is the last one, of a keeper that was killed.

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
"""As `typing` has it, whose import takes room in each keeper."""
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

else:
    import _signal as signal  # without the enumerations of `signal`, which take 0.8 MB in each keeper

MULTIPLEXED, STDOUT, STDERR = 0, 1, 2
"""What a source carries; STDOUT and STDERR are also the streams of the log."""
LOST = 0
"""The stream of a frame that stands for bytes which could not be written."""
PART = struct.Struct("<8sQ")
MAGIC = b"sbxlog1\n"
FRAME = struct.Struct("<BxxxIQ")
CHUNK = 65536
PART_BYTES = 32 * 1024 * 1024
"""Bytes of a file of the log, frames included; there are two of them."""
LOG, OLDER = "log", "log.1"
EXIT = "exit"
LOCK = "keeper"
"""Files in the sandbox's directory: the log, how it ended, and the lock that its keeper holds for as long as it is."""

NOTHING, NOTE, TELL, REMOVE = "nothing", "note", "tell", "remove"
"""What to do at the end: nothing (the command does it), note it in the record, have the manager note it and withdraw
published ports, or remove the sandbox."""

HANDLED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGALRM, signal.SIGCHLD, signal.SIGWINCH),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
"""Signals that a command may have handlers for: they do not run in the keeper."""
_DOCKER = struct.Struct(">BxxxL")
_PATIENCE = 2.0
"""Seconds that a keeper gets to do what takes it milliseconds."""
_RETRY = 0.5
"""Seconds between attempts to reach a dockerd that was restarted."""
_LOOK = 0.01
"""Seconds between looks whether dockerd has noted an end."""
_KEPT_ENV = ("PATH", "HOME", "LANG")
_FINISH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.lifecycle import background; "
    "background.finish(*sys.argv[2:])"
)


def attach_path(container: str) -> str:
    """The path of the call for both outputs of a container, see the Docker Engine API, "Attach to a container"."""
    return f"/containers/{container}/attach?stream=1&stdout=1&stderr=1"


def live(state: dict[str, Any], spawn: Callable[[], int] | None, pid: int | None) -> NoReturn:
    """The life of the keeper, in the fork: never returns into the command's code."""
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
        keeping = _Keeping(state)
        keeping.settle()
        signal.signal(signal.SIGUSR1, keeping.hushed)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.write(control, b"R")
        keeping.run()
    except OSError as error:
        os.write(control, f"E{error.errno or 0} {error.strerror or error}".encode())
    except BaseException as error:
        os.write(control, f"E0 the keeper failed: {type(error).__name__} {error}".encode())
    finally:
        os._exit(1)


class _Log:
    """The log's end that is written to. Its fields are in the state, so that they survive an exec."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._path = f"{state['directory']}/{LOG}"
        if "log" not in state:
            state.update(position=0, lost=0, part=PART_BYTES, begin=0)
            state["log"], state["size"] = self._make(self._path)

    @property
    def position(self) -> int:
        """Bytes that were taken in so far."""
        return int(self._state["position"])

    def room(self, size: int) -> bool:
        """Whether the newest file takes so many bytes more."""
        return bool(self._state["size"] + 2 * FRAME.size + size <= self._state["part"])

    def may_rotate(self, acknowledged: int) -> bool:
        """Whether all that a rotation would drop was read."""
        return bool(acknowledged >= self._state["begin"])

    def rotate(self) -> None:
        """Begin a new file, and drop the older one of two; where the disk has no room for it, go on as it is."""
        try:
            made, size = self._make(f"{self._path}.new")
        except OSError:
            return
        os.rename(self._path, f"{self._state['directory']}/{OLDER}")
        os.rename(f"{self._path}.new", self._path)
        os.close(self._state["log"])
        self._state.update(log=made, size=size, begin=self.position)

    def append(self, stream: int, data: bytes) -> None:
        """Write a frame; where the disk has no room for it, say so in the next one that it has."""
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


class _Keeping:
    """What the keeper does, until it is over. All that it knows is in `state`, which goes through an exec."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self.log = _Log(state)
        self.acknowledged = 0
        self.paused = False
        self.over = False
        self.poller = select.poll()

    def settle(self) -> None:
        """Take the lock, and close whatever else the command had open: its terminal, its locks, its pipes."""
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
        """All that it needs."""
        state = self.state
        named = [state[name] for name in ("control", "wake", "status", "pidfd", "lock", "log")]
        return [one for one in named if one >= 0] + [source[0] for source in state["sources"]]

    def hushed(self, _number: int, _frame: object) -> None:
        """The sandbox is being removed: nothing is to be written down."""
        self.state["then"] = ""
        if self.over:
            os._exit(0)

    def run(self) -> NoReturn:
        """Keep, until it is over; then say so, and do what was asked for."""
        state = self.state
        for descriptor in (state["control"], state["pidfd"]):
            if descriptor >= 0:
                self.poller.register(descriptor, select.POLLIN)
        self._listen()
        while not self.over:
            if "gone" in state or (not state["sources"] and state["pidfd"] < 0):
                self._end()
                break
            cut_off = state["engine"] and not state["sources"]
            if not (found := self.poller.poll(_RETRY * 1000 if cut_off else None)):
                self._reconnect()
            for descriptor, _ in found:
                if descriptor == state["control"]:
                    self._told()
                elif descriptor == state["pidfd"]:
                    self._end()
                    break
                else:
                    self._take(descriptor)
        while state["control"] >= 0 and state["then"] != "":
            self.poller.poll()
            self._told()
        self._then()

    def _listen(self) -> None:
        for source in self.state["sources"]:
            self.poller.register(source[0], select.POLLIN)

    def _take(self, descriptor: int, *, last: bool = False) -> None:
        """Read from a source and write it to the log, or pause where the reader in the foreground is too far behind."""
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
        over = not data
        if source[3]:
            data, code = _marked(source[2], source[3], data)
            if code is not None:
                over, self.state["told"] = True, code
        if data:
            self._append(source, data)
        if over:
            self.poller.unregister(descriptor)
            self.state["sources"].remove(source)
            os.close(descriptor)

    def _append(self, source: list[Any], data: bytes) -> None:
        if source[1] == MULTIPLEXED:
            for stream, part in demultiplexed(source[2], data):
                first = stream == STDERR and self.log.position == 0
                self.log.append(stream, _in_our_words(part) if first else part)
        else:
            self.log.append(source[1], data)
        if self.state["hold"]:
            self._wake()

    def _wake(self) -> None:
        if self.state["wake"] >= 0:
            try:
                os.eventfd_write(self.state["wake"], 1)
            except BlockingIOError:
                return

    def _told(self) -> None:
        """Take what the command says; its end says something, too."""
        state = self.state
        try:
            message = os.read(state["control"], 64)
        except OSError:
            message = b""
        kind, rest = message[:1], message[1:].decode("ascii")
        if kind == b"A":
            self.acknowledged = int(rest)
        else:
            state["hold"] = False
        if kind in (b"D", b""):
            if state["then"] != "":
                state["then"] = rest if kind == b"D" else state["orphan"]
            self.poller.unregister(state["control"])
            os.close(state["control"])
            os.close(state["wake"])
            state["control"] = state["wake"] = -1
            if kind == b"" and state["then"] == REMOVE:
                self._then()  # the command that wanted it in the background died before it served
            if not self.over:
                self._slim_down()
        if self.paused and (not state["hold"] or self.log.may_rotate(self.acknowledged)):
            self.paused = False
            self._listen()

    def _end(self) -> None:
        """The sandbox has ended: take in what is left, learn the exit code, and note it."""
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
                break  # somebody whom the workload has left behind writes on and on
            for descriptor, _ in ready:
                self._take(descriptor, last=True)
        code = self._code()
        state["code"] = "" if code is None else str(code)
        self.over = True  # from here on `hushed` ends this
        if state["then"] != "":
            self._note(code)
        if state["control"] >= 0:
            self.poller = select.poll()
            self.poller.register(state["control"], select.POLLIN)
            try:
                os.write(state["control"], f"X{state['code']}".encode())
            except OSError:
                return

    def _code(self) -> int | None:
        """The exit code as a shell would say it."""
        state = self.state
        if state["child"]:
            code = os.waitstatus_to_exitcode(os.waitpid(state["pid"], 0)[1])
            return code if code >= 0 else 128 - code
        if state["status"] >= 0:
            poller = select.poll()
            poller.register(state["status"], select.POLLIN)
            if poller.poll(_PATIENCE * 1000):
                state["told"] = os.read(state["status"], 16)
        said = state.get("told", b"")
        if said.isdigit():
            return int(said)
        return self._engines_code() if state["engine"] else None

    def _engines_code(self) -> int | None:
        """The exit code as dockerd has it, which also knows of an OOM kill: the control group is gone by now."""
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
        """Read on from a container whose stream has ended before it did; what it wrote in between is lost."""
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
        """Make a call to dockerd; where it does not answer, what is returned cannot be read from."""
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
        """Whether the kernel has killed a process of it for want of memory; None where that cannot be seen."""
        if "oom_killed" in self.state:
            return bool(self.state["oom_killed"])
        try:
            with open(self.state["events"], encoding="ascii") as stream:
                found = dict(line.split() for line in stream)
            return int(found["oom_kill"]) > 0
        except (OSError, ValueError, KeyError):
            return None

    def _slim_down(self) -> None:
        """Become the bare interpreter with this file; where that cannot be, go on as the fork that this is."""
        import marshal

        # A handler does not survive exec(2), and the default of this one would end us; a blocked signal waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
        for descriptor in self.descriptors():
            os.set_inheritable(descriptor, True)
        program = os.path.abspath(__file__)
        data = marshal.dumps(self.state).hex()
        try:
            self._execute(["-I", "-S", program, f"sbx-{self.state['ident']}", data])
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))

    def _then(self) -> NoReturn:
        state = self.state
        then = state["then"]
        if then not in (NOTE, TELL, REMOVE):
            os._exit(0)
        os.set_inheritable(state["lock"], True)  # whoever removes it meanwhile still finds who is at it
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # The store needs the bare interpreter, the manager one with its site packages.
        options = ["-I", "-S"] if then == NOTE else ["-I"]
        self._execute([*options, "-c", _FINISH, package, f"sbx-{state['ident']}", state["code"], then])
        os._exit(1)

    def _execute(self, arguments: list[str]) -> None:
        env = {name: text for name, text in os.environ.items() if name in _KEPT_ENV or name.startswith("SANDBOX_")}
        os.execve(sys.executable, [sys.executable, *arguments], env)  # noqa: S606 - no shell is the point


def _capacity(descriptor: int) -> int:
    """Bytes that a pipe holds at most; a guess for what is none."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 1 << 20


def _in_our_words(said: bytes) -> bytes:
    """Replace the init's message that it cannot execute the workload (tini(1)) by the one of the other levels."""
    if not said.startswith(b"[FATAL tini ("):
        return said
    command, failed, reason = said.rstrip(b"\n").decode("utf-8", "replace").rpartition(" failed: ")
    name = command.partition(" exec ")[2]
    if not failed or not name:
        return said
    if reason == os.strerror(errno.ENOENT):
        return f"sandbox: there is no command {name!r} inside\n".encode()
    return f"sandbox: {name!r} cannot be executed: {reason}\n".encode()


def demultiplexed(begun: list[Any], data: bytes) -> Iterator[tuple[int, bytes]]:
    """The streams in some bytes of Docker's framing (Docker Engine API, "Attach to a container").

    Args:
        begun: the frame that was cut off by the end of the bytes before: stream, bytes missing, half a header.
        data: what came.
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
    """What stands before a mark, and the line that follows the mark; None as long as it has not come.

    Args:
        begun: the last field is what was held back, for it may be the beginning of the mark.
        mark: the bytes that end the source.
        data: what came; nothing at an end without the mark.
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
    """Go on after the exec."""
    import marshal

    keeping = _Keeping(marshal.loads(bytes.fromhex(data)))  # noqa: S302 - our own argument
    for descriptor in keeping.descriptors():
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGUSR1, keeping.hushed)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1,))
    try:
        keeping.run()
    finally:
        os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[2])
