"""The command's side of the keeper: start it, read the output that it logs, ask it to act at the end, wait for it.

`keeper` is the process itself, one per sandbox, which plays the role of conmon(8). `launch` forks it and returns a
`Keeper`, connected to it by a socket. Other commands find the keeper of a sandbox by the lock in the sandbox's
directory: `holder`, `watching`, `silence` and `wait_gone`.
"""

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
"""Seconds to wait for something that normally takes milliseconds."""
_LINGER = 1.0


class Source(NamedTuple):
    """A descriptor that the keeper reads from.

    Attributes:
        descriptor: will be owned by the keeper.
        stream: STDOUT, STDERR or MULTIPLEXED of `keeper`.
        mark: bytes that end the source; empty for one that reaches an end of file.
    """

    descriptor: int
    stream: int
    mark: bytes = b""


class Keeper:
    """A keeper that this process has started.

    Attributes:
        pid: its process.
        child: the init that `spawn` started in it; 0 without one.
    """

    def __init__(self, directory: Path, pid: int, control: socket.socket, wake: int) -> None:
        self.pid = pid
        self.child = 0
        self.code: int | None = None
        """The exit code, once the keeper has reported it."""
        self._died = False
        self._directory = directory
        self._control: socket.socket | None = control
        self._wake = wake
        self._end_received = False

    def wait_ready(self) -> None:
        """Wait until it has closed everything inherited from the command, and `holder` can find it.

        Raises:
            OSError: it failed, for example because it could not create the log.
        """
        self.expect(b"R")

    def expect(self, kind: bytes) -> str:
        """Receive a message of this kind and return its text; used by `launch`.

        Raises:
            OSError: it reported an error, or ended.
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
        """Yield the workload's output, from its first byte until it ends.

        The workload is blocked while the caller is PART_BYTES behind.

        Args:
            dropped: called with the number of missing bytes, if the disk was full or `stop_following` was called.
        """
        acknowledged = 0
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        with Reader(self._directory, dropped) as reader:
            while True:
                # Checked before the read, so that the last output is still read.
                ended = self.ended()
                for piece in reader.read():
                    yield piece
                    if reader.position - acknowledged >= keeper.PART_BYTES // 32:
                        acknowledged = self._acknowledge(reader.position)
                if ended:
                    return
                acknowledged = self._acknowledge(reader.position)
                poller.poll(LOOK_EVERY * 1000)
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    continue

    def stop_following(self) -> None:
        """Tell the keeper that nobody reads `output`: it never blocks the workload, and the log's cap drops old output.

        The manager calls this for every sandbox whose output it does not show.
        """
        self._send(b"L")

    def detach(self, action: str) -> None:
        """Leave the keeper running in the background, to do an action at the end: NOTE, NOTIFY or REMOVE.

        Raises:
            OSError: it has ended.
        """
        if self._control is None:
            raise BrokenPipeError(errno.EPIPE, "the connection to the keeper is closed")
        self._control.send(b"D" + action.encode("ascii"))
        self.close()

    def leave(self) -> None:
        """Leave the keeper running in the background, with no action at the end: the caller acts."""
        self._send(b"D" + keeper.NOTHING.encode("ascii"))
        self.close()

    def wait_exit_code(self, timeout: float) -> int | None:
        """Return the exit code that the keeper reports within `timeout` seconds; None if it reports none."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        if self._control is not None:
            poller.register(self._control, select.POLLIN)
        while not self.ended() and (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
        return self.code

    def died(self) -> bool:
        """Return whether the keeper ended before the sandbox did, because it was killed."""
        return self.ended() and self._died

    def close(self) -> None:
        """Close the connection. Idempotent. Without `detach` or `leave` before, this looks as if the command had died.

        The keeper then records the end of a sandbox that has an owner (`Record.owner`). It removes one without an owner
        at once, since its start in the background was not completed.
        """
        if self._control is not None:
            self._control.close()
            self._control = None
            os.close(self._wake)
        self.reap()

    def reap(self) -> None:
        """Wait for the process if it has ended, so that it leaves no zombie."""
        _collect(self.pid)

    def ended(self) -> bool:
        """Return whether the keeper has reported the sandbox's end, or has ended itself."""
        if self._control is not None and not self._end_received:
            try:
                message = self._control.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                message = b""
            self._end_received = True
            self._died = not message
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
                return  # it has ended; whoever waits for the end sees that


_launched: set[int] = set()
"""Pids of keepers that this process has started and not yet waited for."""


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
    """Start the keeper of a sandbox; the module `keeper` explains how a level uses this.

    Args:
        record: of the sandbox, whose directory exists.
        sources: the descriptors to read from.
        spawn: starts the init; called in the keeper. `launch` then returns as soon as the init exists, while the keeper
            still sets itself up: call `Keeper.wait_ready` before the init runs the workload.
        pid: the process whose end is the sandbox's end.
        status: a descriptor from which the exit code of `pid` can be read once it has ended.
        events: a file of the sandbox's control group with a line `oom_kill N`, read at the end.
        engine: dockerd's socket and a container, whose MULTIPLEXED stream is the source. dockerd is asked for the exit
            code and an OOM kill; if the stream ends before `pid` does (dockerd was restarted), it is attached to anew.
        linger: seconds without output, after the sandbox's end, until the sources count as ended too; by default 0
            with `spawn` or `status`, where all output can be read by then, else one second.

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
        "action": keeper.NOTHING,
        "orphan": keeper.NOTE if record.owner is not None else keeper.REMOVE,
        "hold": True,
    }
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, keeper.HANDLED)
    try:
        made = _fork()
        if made == 0:
            keeper.run_forked(state, spawn, pid)
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
    """Fork as os.fork does; in a process with one thread by clone(2), without the 1 to 2 ms that its hooks take."""
    return syscalls.clone(syscalls.SIGCHLD) if len(os.listdir("/proc/self/task")) == 1 else os.fork()


def holder(directory: Path) -> int | None:
    """Return the pid of a sandbox's keeper, which is the process that holds the lock; None if there is none."""
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
    """Return whether the log may still grow: the keeper runs, and has not written down the end."""
    return not (directory / keeper.EXIT).exists() and holder(directory) is not None


def silence(directory: Path) -> None:
    """Tell the keeper of a sandbox that is about to be removed to record nothing at the end."""
    _signal(directory, signal.SIGUSR1)


def wait_gone(directory: Path) -> None:
    """Wait until the keeper of a sandbox that has ended is gone; kill it if it does not exit by itself.

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
        if holder(directory) == pid:  # checked again with the pidfd open: the pid may have been reused
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
