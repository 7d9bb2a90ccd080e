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

    self.keeper = keeper.launch(record, sources, ...)       in `create`, or in `start` before the workload begins

with one `Source` per descriptor: a pipe, a socket, anything that poll(2) takes and that has an end. STDOUT and STDERR
are plain bytes, MULTIPLEXED is Docker's framing of both. A source with a mark has ended where the mark comes, which a
line with the exit code follows (a virtual machine's port has no end of its own); its descriptor is closed then, and
the other side sees that everything was read. The keeper takes the descriptors over (the caller's copies are closed).
How it learns of the end:

- `spawn`: called in the keeper, makes the init as the keeper's child, and returns its pid; `Keeper.child` is that
  (then `Keeper.settled` has to be called, before the init is let go);
- `pid`: some other process, watched by a pidfd; with `status`, a descriptor from which its exit code can be read then,
  as decimal digits;
- neither: the sandbox has ended when its sources have.

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
import signal
import struct
import sys
import time
from collections import namedtuple

TYPE_CHECKING = False
"""As `typing` has it, whose import takes room in each keeper."""
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any, NoReturn

    from sandbox.isolation.log import Piece
    from sandbox.state.record import Record

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

_HANDLED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGALRM, signal.SIGCHLD, signal.SIGWINCH),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
"""Signals that a command may have handlers for: they do not run in the keeper."""
_DOCKER = struct.Struct(">BxxxL")
_FLOCK = struct.Struct("hhqqi4x")
_PATIENCE = 2.0
"""Seconds that a keeper gets to do what takes it milliseconds."""
_LINGER = 1.0
_KEPT_ENV = ("PATH", "HOME", "LANG")
_FINISH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.lifecycle import background; "
    "background.finish(*sys.argv[2:])"
)

Source = namedtuple("Source", ("descriptor", "stream", "mark"), defaults=(b"",))
"""A descriptor to read from, and what comes: STDOUT, STDERR or MULTIPLEXED; up to a mark, where one is given."""


# --- the command's side ------------------------------------------------------------------------------------------


class Keeper:
    """A keeper that this process has started.

    Attributes:
        pid: its process.
        child: the init that its `spawn` made; 0 without one.
    """

    def __init__(self, directory: Path, pid: int, control: socket.socket, wake: int) -> None:
        self.pid = pid
        self.child = 0
        self.code: int | None = None
        """The exit code, once the keeper has told it."""
        self._lost = False
        self._directory = directory
        self._control: socket.socket | None = control
        self._wake = wake
        self._told = False

    def settled(self) -> None:
        """Wait until it has closed all that it has inherited of the command, and can be found (`holder`).

        Raises:
            OSError: it could not write the log, say.
        """
        self.expect(b"R")

    def expect(self, kind: bytes) -> str:
        """Take an answer of it; for `launch`.

        Raises:
            OSError: it was another one.
        """
        try:
            answer = self._control.recv(4096) if self._control is not None else b""
            if answer[:1] != kind:
                number, _, text = answer[1:].decode("utf-8", "replace").partition(" ")
                raise OSError(int(number or 0), text or "the keeper ended at once")
        except BaseException:
            self.close()
            raise
        return answer[1:].decode("ascii")

    def output(self, dropped: Callable[[int], object]) -> Iterator[Piece]:
        """What the workload writes, from its first byte until it ends.

        A slow reader slows the workload, once it is PART_BYTES behind.

        Args:
            dropped: told how many bytes are missing: the disk had no room for them, or `let_go` was called.
        """
        from sandbox.interrupts import LOOK_EVERY
        from sandbox.isolation.log import Reader

        acknowledged = 0
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        with Reader(self._directory, dropped) as reader:
            while True:
                # Asked before the read: what it wrote last is then still read.
                over = self.over()
                for piece in reader.read():
                    yield piece
                    if reader.position - acknowledged >= PART_BYTES // 32:
                        acknowledged = self._acknowledge(reader.position)
                if over:
                    return
                acknowledged = self._acknowledge(reader.position)
                poller.poll(LOOK_EVERY * 1000)
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    continue

    def let_go(self) -> None:
        """Nobody reads `output`: the workload is not held back for it, and old output is dropped as the log's cap says.

        The manager calls this for every sandbox that is not followed.
        """
        self._send(b"L")

    def detach(self, then: str) -> None:
        """Let the keeper go on by itself, small, and do something at the end: NOTE, TELL or REMOVE.

        Raises:
            OSError: it is gone.
        """
        if self._control is None:
            raise BrokenPipeError(errno.EPIPE, "the keeper was let go of")
        self._control.send(b"D" + then.encode("ascii"))
        self.close()

    def leave(self) -> None:
        """Let it go on by itself, and do nothing at the end: the caller does."""
        self._send(b"D" + NOTHING.encode("ascii"))
        self.close()

    def ending(self, timeout: float) -> int | None:
        """The exit code as the keeper tells it, where it does so within so many seconds."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        while not self.over() and (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
        return self.code

    def lost(self) -> bool:
        """Whether it has ended before the sandbox did: somebody has killed it."""
        return self.over() and self._lost

    def close(self) -> None:
        """Let go of it; without `detach` or `leave` before, it takes us for dead. Idempotent.

        Then it notes the end; and a sandbox that nobody owns (`Record.owner`) it removes at once, for the command that
        wanted it in the background has not come to the end of its start.
        """
        if self._control is not None:
            self._control.close()
            self._control = None
            os.close(self._wake)
        self.reap()

    def reap(self) -> None:
        """Collect it, if it has ended."""
        _collect(self.pid)

    def over(self) -> bool:
        """Whether it has said that the sandbox has ended, or is gone itself."""
        if self._control is not None and not self._told:
            try:
                message = self._control.recv(64, _dont_wait())
            except BlockingIOError:
                return False
            except OSError:
                message = b""
            self._told = True
            self._lost = not message
            if message[:1] == b"X" and message[1:]:
                self.code = int(message[1:])
        return True

    def _acknowledge(self, position: int) -> int:
        self._send(b"A%d" % position)
        return position

    def _send(self, message: bytes) -> None:
        if self._control is not None:
            try:
                self._control.send(message)
            except OSError:
                return  # it is gone; whoever waits for the end sees that


_launched: set[int] = set()
"""Keepers that this process has started and not yet collected."""


def _collect(pid: int) -> None:
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            _launched.discard(pid)
    except ChildProcessError:
        _launched.discard(pid)


def _dont_wait() -> int:
    import socket

    return socket.MSG_DONTWAIT


def launch(
    record: Record,
    sources: Sequence[Source],
    *,
    spawn: Callable[[], int] | None = None,
    pid: int | None = None,
    status: int | None = None,
    events: str | None = None,
    linger: float | None = None,
) -> Keeper:
    """Start the keeper of a sandbox; how is told at the top.

    Args:
        record: of the sandbox; its directory is there.
        sources: what to read from.
        spawn: makes the init, in the keeper. Then this returns as soon as there is one, and what is to come can be done
            while the keeper settles; see `Keeper.settled`, which is to be called before anything is let go.
        pid: process whose end is the sandbox's.
        status: where the exit code of `pid` can be read once it has ended.
        events: file with a line `oom_kill N` of the sandbox's control group, read at the end.
        linger: seconds of silence after which, the sandbox having ended, the sources are taken to have ended too;
            by default 0 with `spawn` or `status` (all that was written can be read by then), else a second.

    Raises:
        OSError: it could not be started, or `spawn` failed.
    """
    import socket

    for one in tuple(_launched):
        _collect(one)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    state: dict[str, Any] = {
        "ident": record.id,
        "directory": str(record.directory),
        "control": its.fileno(),
        "code": "",
        "wake": wake,
        "sources": [[source.descriptor, source.stream, [0, 0, b""], source.mark] for source in sources],
        "status": -1 if status is None else status,
        "events": events or "",
        "linger": linger if linger is not None else 0.0 if spawn or status is not None else _LINGER,
        "then": NOTHING,
        "orphan": NOTE if record.owner is not None else REMOVE,
        "hold": True,
    }
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        made = _fork()
        if made == 0:
            _live(state, spawn, pid)
        _launched.add(made)
    except BaseException:
        ours.close()
        os.close(wake)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        its.close()
        for source in sources:
            os.close(source.descriptor)
        if status is not None:
            os.close(status)
    kept = Keeper(record.directory, made, ours, wake)
    if spawn is not None:
        kept.child = int(kept.expect(b"P"))
    else:
        kept.expect(b"R")
    return kept


def _fork() -> int:
    """As os.fork; where there is one thread only, without what that does for others, which takes it 1 to 2 ms."""
    from sandbox.kernel import syscalls

    return syscalls.clone(syscalls.SIGCHLD) if len(os.listdir("/proc/self/task")) == 1 else os.fork()


def holder(directory: Path) -> int | None:
    """The pid of a sandbox's keeper; None when it has none. The kernel says so, by who holds the lock."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return pid if kind != fcntl.F_UNLCK and pid > 1 else None


def watching(directory: Path) -> bool:
    """Whether more may come to the log."""
    return not (directory / EXIT).exists() and holder(directory) is not None


def hush(directory: Path) -> None:
    """Tell the keeper of a sandbox that is about to be removed to write nothing down at the end."""
    _signal(directory, signal.SIGUSR1)


def dismiss(directory: Path) -> None:
    """See the keeper off, whose sandbox has ended; one that does not go by itself is killed.

    Raises:
        TimeoutError: it does not die.
    """
    if not _gone(directory, _PATIENCE):
        _signal(directory, signal.SIGKILL)
        if not _gone(directory, _PATIENCE):
            raise TimeoutError(f"the keeper {holder(directory)} does not die")
    for one in tuple(_launched):
        _collect(one)


def _signal(directory: Path, number: int) -> None:
    pid = holder(directory)
    if pid is None or pid == os.getpid():
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if holder(directory) == pid:  # asked again with the descriptor in hand: the number may be another's by now
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _gone(directory: Path, timeout: float) -> bool:
    pid = holder(directory)
    if pid is None or pid == os.getpid():
        return True
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return holder(directory) != pid or bool(poller.poll(timeout * 1000))
    finally:
        os.close(descriptor)


# --- the keeper's side -------------------------------------------------------------------------------------------


def _live(state: dict[str, Any], spawn: Callable[[], int] | None, pid: int | None) -> NoReturn:
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
            for descriptor, _ in self.poller.poll():
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
            for stream, part in _demultiplexed(source[2], data):
                self.log.append(stream, part)
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
        return int(said) if said.isdigit() else None

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

    def _oom_kills(self) -> bool | None:
        """Whether the kernel has killed a process of it for want of memory; None where that cannot be seen."""
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


def _demultiplexed(begun: list[Any], data: bytes) -> Iterator[tuple[int, bytes]]:
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
