"""Starting, watching and ending the keeper of a sandbox: the command's side of `keeper`."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.interrupts import LOOK_EVERY
from sandbox.isolation import keeper
from sandbox.isolation.log import OnDrop, Piece, Reader
from sandbox.kernel import syscalls
from sandbox.state.record import Record

_FLOCK = struct.Struct("hhqqi4x")
_PATIENCE = 2.0
"""Seconds that a keeper gets to do what takes it milliseconds."""
_LINGER = 1.0


class Source(NamedTuple):
    """A descriptor that the keeper reads from.

    Attributes:
        descriptor: taken over by the keeper.
        stream: STDOUT, STDERR or MULTIPLEXED of `keeper`.
        mark: bytes after which the source has ended; empty for one that has an end of its own.
    """

    descriptor: int
    stream: int
    mark: bytes = b""


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

    def output(self, dropped: OnDrop) -> Iterator[Piece]:
        """What the workload writes, from its first byte until it ends.

        A slow reader slows the workload, once it is PART_BYTES behind.

        Args:
            dropped: told how many bytes are missing: the disk had no room for them, or `let_go` was called.
        """
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
                    if reader.position - acknowledged >= keeper.PART_BYTES // 32:
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
        self._send(b"D" + keeper.NOTHING.encode("ascii"))
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
                message = self._control.recv(64, socket.MSG_DONTWAIT)
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


def launch(
    record: Record,
    sources: Sequence[Source],
    *,
    spawn: Callable[[], int] | None = None,
    pid: int | None = None,
    status: int | None = None,
    events: str | None = None,
    engine: tuple[str, str] | None = None,
    linger: float | None = None,
) -> Keeper:
    """Start the keeper of a sandbox; see `keeper` for how a level connects itself.

    Args:
        record: of the sandbox; its directory is there.
        sources: what to read from.
        spawn: makes the init, in the keeper. Then this returns as soon as there is one, and what is to come can be done
            while the keeper settles; see `Keeper.settled`, which is to be called before anything is let go.
        pid: process whose end is the sandbox's.
        status: where the exit code of `pid` can be read once it has ended.
        events: file with a line `oom_kill N` of the sandbox's control group, read at the end.
        engine: dockerd's socket and a container, whose MULTIPLEXED stream is the source: asked for the exit code and
            the OOM kill, and connected to anew where the stream ends before `pid` does (dockerd was restarted).
        linger: seconds of silence after which, the sandbox having ended, the sources are taken to have ended too;
            by default 0 with `spawn` or `status` (all that was written can be read by then), else a second.

    Raises:
        OSError: it could not be started, or `spawn` failed.
    """
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
        "engine": engine or (),
        "linger": linger if linger is not None else 0.0 if spawn or status is not None else _LINGER,
        "then": keeper.NOTHING,
        "orphan": keeper.NOTE if record.owner is not None else keeper.REMOVE,
        "hold": True,
    }
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, keeper.HANDLED)
    try:
        made = _fork()
        if made == 0:
            keeper.live(state, spawn, pid)
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
    return syscalls.clone(syscalls.SIGCHLD) if len(os.listdir("/proc/self/task")) == 1 else os.fork()


def holder(directory: Path) -> int | None:
    """The pid of a sandbox's keeper; None when it has none. The kernel says so, by who holds the lock."""
    try:
        descriptor = os.open(directory / keeper.LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
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
    return not (directory / keeper.EXIT).exists() and holder(directory) is not None


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
