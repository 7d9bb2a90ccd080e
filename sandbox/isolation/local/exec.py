"""The relay's backend for a command in a local sandbox: pipes or a terminal of the sandbox, and a pidfd.

Once the command has ended, its output up to then is read and the pipes are closed, even if a child that it left behind
still has them open. The child keeps running inside, but its later output is lost. (Waiting for the end of file would
make a command hang that starts a daemon.)
"""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from sandbox.errors import EngineError
from sandbox.isolation.base import WindowSize
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.relay import CHUNK, Backend
from sandbox.kernel import command as joined

_LEFT = 2 * CHUNK
"""The most bytes that a pipe or terminal may hold when the command ends; more is output of other processes."""
_MOMENT = 0.2
"""Seconds to wait for the sandbox to end after a command was killed."""


class LocalBackend(Backend):
    """A command that runs inside, as a child of this process."""

    def __init__(
        self, started: joined.Started, outputs: dict[int, int], entry: int | None, alive: Callable[[], bool]
    ) -> None:
        """Take over a command that has been started.

        Args:
            started: the command.
            outputs: descriptors to read its output from, by stream.
            entry: the descriptor to write its input to; None without input.
            alive: returns whether the sandbox still runs.
        """
        self._started = started
        self._outputs = {descriptor: stream for stream, descriptor in outputs.items()}
        self._entry = entry
        self._alive = alive
        self._pidfd = os.pidfd_open(started.pid)
        self._code: int | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._stop_read, self._stop_write = os.pipe()
        self._pieces = self._until_it_ends()
        if entry is not None:
            os.set_blocking(entry, False)

    def read(self) -> tuple[int, bytes]:
        piece = next(self._pieces, (STDOUT, b""))
        if not piece[1] and self._code is None:
            with self._lock:
                _, status = os.waitpid(self._started.pid, 0)
                self._code = os.waitstatus_to_exitcode(status)
        return piece

    def _until_it_ends(self) -> Iterator[tuple[int, bytes]]:
        """Yield its output until it ends, and then the rest that its pipes hold."""
        poller = select.poll()
        for descriptor in (*self._outputs, self._pidfd, self._stop_read):
            poller.register(descriptor, select.POLLIN)
        left = dict.fromkeys(self._outputs, _LEFT)
        ended = closing = False
        while not ended or (left and not closing):
            ready = [descriptor for descriptor, _ in poller.poll(0 if ended else None)]
            if ended and not ready:
                return
            if self._pidfd in ready:
                ended = True
                poller.unregister(self._pidfd)
            if self._stop_read in ready:
                closing = True
                poller.unregister(self._stop_read)
            for descriptor in left.keys() & set(ready):
                stream, data = self._outputs.get(descriptor, STDOUT), self._take(descriptor)
                if data:
                    yield stream, data
                if ended:
                    left[descriptor] -= len(data or b"")
                if data == b"" or left[descriptor] <= 0 or descriptor not in self._outputs:
                    poller.unregister(descriptor)
                    del left[descriptor]
                    self._shut(descriptor)

    def _take(self, descriptor: int) -> bytes | None:
        """Read from a descriptor; return no bytes at the end of file, None if nothing can be read now."""
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # no process has the terminal open any more (pty(7))
                return b""
            raise

    def _shut(self, descriptor: int) -> None:
        """Close an output: processes that still write to it get SIGPIPE."""
        if self._started.master is None:
            self._outputs.pop(descriptor, None)
            os.close(descriptor)

    def close_read(self, stream: int) -> None:
        if self._started.master is not None:
            self._kill(signal.SIGHUP)
        else:
            # `read` closes the descriptors that are not listed here.
            self._outputs = {descriptor: of for descriptor, of in self._outputs.items() if of != stream}

    def _kill(self, number: int) -> None:
        with self._lock:  # the pid cannot be reused before it was waited for, which needs the lock
            if self._code is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._started.pid, number)

    def write(self, data: bytes) -> bool:
        if self._entry is None:
            return False
        poller = select.poll()
        poller.register(self._entry, select.POLLOUT)
        for descriptor in (self._stop_read, self._pidfd):
            poller.register(descriptor, select.POLLIN)
        view = memoryview(data)
        while view:
            if any(descriptor != self._entry for descriptor, _ in poller.poll()):
                return False
            try:
                view = view[os.write(self._entry, view) :]
            except BlockingIOError:
                continue
            except OSError:
                self.close_write()
                return False
        return True

    def close_write(self) -> None:
        if self._entry is not None and self._started.master is None:
            os.close(self._entry)
            self._entry = None

    def resize(self, size: WindowSize) -> None:
        if self._started.master is not None:
            with suppress(OSError):  # it has just ended, and its terminal with it
                joined.resize(self._started.master, (size.rows, size.columns))

    def end(self) -> None:
        self._kill(signal.SIGKILL)
        if self._stop_write >= 0:
            os.close(self._stop_write)
            self._stop_write = -1

    def exit_code(self, timeout: float | None) -> int:
        code = self._code if self._code is not None else -signal.SIGKILL
        if code == -signal.SIGKILL and self._sandbox_ends():
            raise EngineError("the sandbox ended before the command did")
        return code if code >= 0 else 128 - code

    def _sandbox_ends(self) -> bool:
        """Return whether the sandbox ends too, a moment later: an init dies last in its pid namespace."""
        deadline = time.monotonic() + _MOMENT
        while self._alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_MOMENT / 20)
        return True

    def close(self) -> None:
        self.close_write()
        if self._stop_write >= 0:
            os.close(self._stop_write)
        for descriptor in (*self._outputs, self._pidfd, self._stop_read):
            os.close(descriptor)


def start(
    place: joined.Place,
    what: joined.Command,
    *,
    has_input: bool,
    owner: int,
    alive: Callable[[], bool],
) -> LocalBackend:
    """Start a command.

    Args:
        place: the sandbox to join.
        what: the command.
        has_input: whether input will be written to it; otherwise its input is empty.
        owner: user and group id on this host for its output pipes, so that it may open them again.
        alive: returns whether the sandbox still runs.

    Raises:
        ChildError, OSError: as `command.start`.
    """
    if what.terminal is not None:
        started = joined.start(place, what, (0, 1, 2))
        if started.master is None:
            raise RuntimeError("a command with a terminal has no master end")
        return LocalBackend(started, {STDOUT: started.master}, started.master if has_input else None, alive)
    theirs: list[int] = []
    ours: list[int] = []
    try:
        if has_input:
            _pipe(theirs, ours)
        else:
            theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in (STDOUT, STDERR):
            _pipe(ours, theirs)
            os.fchown(theirs[-1], owner, owner)
        started = joined.start(place, what, (theirs[0], theirs[1], theirs[2]))
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    outputs = dict(zip((STDOUT, STDERR), ours[-2:], strict=True))
    return LocalBackend(started, outputs, ours[0] if has_input else None, alive)


def _pipe(reading: list[int], writing: list[int]) -> None:
    read, write = os.pipe()
    reading.append(read)
    writing.append(write)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
