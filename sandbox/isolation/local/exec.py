"""A command in a local sandbox, and the bytes that pass between it and whoever started it.

The command never gets a descriptor of the caller's own: a terminal or a file of the host in its hands would be a way
out. It has pipes, or a terminal of the sandbox, and two threads here pass the bytes on.

When the command has ended, what it wrote before is passed on, and then its output is closed, although a child that it
left behind may still hold it: such a child keeps running inside, and what it writes from then on is lost. (Waiting
for it, as for the end of a pipe, would make a command that starts a daemon hang.)
"""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sandbox.errors import EngineError
from sandbox.interrupts import wait_event
from sandbox.isolation.base import Attached, WindowSize
from sandbox.kernel import command as joined

_CHUNK = 65536
_END_OF_INPUT = b"\x04"
"""VEOF, what a person types to end the input (termios(3)): a terminal has no end that could be closed."""
_LEFT = 2 * 65536
"""Bytes that may lie in a pipe or a terminal when the command ends, at most; what comes after is somebody else's."""
_MOMENT = 0.2
"""Seconds."""
_DEATH = 5.0
"""Seconds to wait for a command that got SIGKILL."""

Sink = Callable[[bytes], None]
"""Takes what the command wrote; an OSError means that nobody wants it any more."""


class LocalAttached(Attached):
    """A command that runs inside, as a child of this process."""

    def __init__(
        self,
        started: joined.Started,
        outputs: dict[int, Sink],
        stdin: int | None,
        entry: int | None,
        alive: Callable[[], bool],
    ) -> None:
        """Take over a command and start passing bytes.

        Args:
            started: the command.
            outputs: descriptors to read its output from, and who takes it; closed at the end.
            stdin: the caller's descriptor to read its input from; stays the caller's.
            entry: descriptor to write its input to; closed at the end of the input where it is not the terminal.
            alive: whether the sandbox still runs.
        """
        self._alive = alive
        self._started = started
        self._outputs = outputs
        self._pidfd = os.pidfd_open(started.pid)
        self._code: int | None = None
        self._lock = threading.Lock()
        self._stop_read, self._stop_write = os.pipe()
        self._over = threading.Event()
        self._writer: threading.Thread | None = None
        self._reader = threading.Thread(target=self._pass_output, name="output", daemon=True)
        self._reader.start()
        if stdin is not None and entry is not None:
            os.set_blocking(entry, False)
            self._writer = threading.Thread(target=self._pass_input, args=(stdin, entry), name="input", daemon=True)
            self._writer.start()

    def resize(self, size: WindowSize) -> None:
        with self._lock:
            if self._started.master is not None and not self._over.is_set():
                with suppress(OSError):  # it has just ended, and its terminal with it
                    joined.resize(self._started.master, (size.rows, size.columns))

    def wait(self, timeout: float | None = None) -> int:
        """As `Attached.wait`, for at most so many seconds.

        Raises:
            TimeoutError
            EngineError: the sandbox ended first.
        """
        if not wait_event(self._over, timeout):
            raise TimeoutError
        self.close()
        code = self._code if self._code is not None else -signal.SIGKILL
        if code == -signal.SIGKILL and self._sandbox_ends():
            raise EngineError("the sandbox ended before the command did")
        return code if code >= 0 else 128 - code

    def _sandbox_ends(self) -> bool:
        """Whether the sandbox is over too, a moment later: an init dies after all others in its pid namespace."""
        deadline = time.monotonic() + _MOMENT
        while self._alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_MOMENT / 20)
        return True

    def close(self) -> None:
        with self._lock:
            if self._stop_write >= 0:
                self._kill(signal.SIGKILL)
                os.close(self._stop_write)
                self._stop_write = -1
        threads = [thread for thread in (self._reader, self._writer) if thread is not None]
        for thread in threads:
            thread.join(_DEATH)
        with self._lock:
            # A thread that hangs in a read or write of the caller's descriptor keeps ours: closed, their numbers
            # could soon be somebody else's.
            if self._stop_read >= 0 and not any(thread.is_alive() for thread in threads):
                for descriptor in (*self._outputs, self._pidfd, self._stop_read):
                    os.close(descriptor)
                self._outputs.clear()
                self._stop_read = -1

    def _kill(self, number: int) -> None:
        # Its number is its own for as long as it has not been waited for, which needs the lock.
        if self._code is None:
            with suppress(ProcessLookupError):
                os.killpg(self._started.pid, number)

    def _pass_output(self) -> None:
        try:
            self._until_it_ends()
        except BaseException:
            with self._lock:
                self._kill(signal.SIGKILL)
            raise
        finally:
            with self._lock:
                _, status = os.waitpid(self._started.pid, 0)
                self._code = os.waitstatus_to_exitcode(status)
            self._over.set()

    def _until_it_ends(self) -> None:
        """Read what it writes until it has ended, and then what is left."""
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
                size = self._pass_one(descriptor, discard=closing)
                if ended:
                    left[descriptor] -= size
                if not size or left[descriptor] <= 0:
                    poller.unregister(descriptor)
                    del left[descriptor]
                    if self._started.master is None:
                        # Whoever still writes gets SIGPIPE, as at the end of any pipeline.
                        os.close(descriptor)
                        del self._outputs[descriptor]

    def _pass_one(self, descriptor: int, *, discard: bool) -> int:
        """Pass one chunk on; its size, 0 at the end."""
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return 1  # nothing after all: as good as a byte that was passed on
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal that no process has open any more (pty(7))
                return 0
            raise
        if chunk and not discard:
            try:
                self._outputs[descriptor](chunk)
            except OSError:  # nobody reads what it writes
                if self._started.master is not None:
                    with self._lock:
                        self._kill(signal.SIGHUP)
                return 0
        return len(chunk)

    def _pass_input(self, stdin: int, entry: int) -> None:
        poller = select.poll()
        poller.register(stdin, select.POLLIN)
        poller.register(self._stop_read, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        try:
            while True:
                ready = [descriptor for descriptor, _ in poller.poll()]
                if ready != [stdin]:
                    return  # it has ended, or is being closed
                chunk = os.read(stdin, _CHUNK)
                if not chunk:
                    if self._started.master is not None:
                        self._write(entry, _END_OF_INPUT)
                    return
                if not self._write(entry, chunk):
                    return
        except OSError:
            return  # the caller's descriptor is gone, or ours as the command ended
        finally:
            if self._started.master is None:
                os.close(entry)

    def _write(self, entry: int, chunk: bytes) -> bool:
        """Write all of it; False when the command takes no more."""
        poller = select.poll()
        poller.register(entry, select.POLLOUT)
        poller.register(self._stop_read, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        view = memoryview(chunk)
        while view:
            if any(descriptor != entry for descriptor, _ in poller.poll()):
                return False
            try:
                view = view[os.write(entry, view) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True


def to_descriptor(descriptor: int) -> Sink:
    """A sink that writes to a descriptor of the caller's, whether it blocks or not."""

    def write(chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                select.select([], [descriptor], [])

    return write


def run(
    place: joined.Place,
    what: joined.Command,
    *,
    stdin: int | None,
    stdout: Sink,
    stderr: Sink,
    alive: Callable[[], bool],
) -> LocalAttached:
    """Start a command and pass its bytes.

    Args:
        place: where.
        what: the command.
        stdin: descriptor to read its input from; None gives it an empty one.
        stdout: takes its output.
        stderr: takes its errors; unused with a terminal.
        alive: whether the sandbox still runs.

    Raises:
        ChildError, OSError: as `command.start`.
    """
    if what.terminal is not None:
        started = joined.start(place, what, (0, 1, 2))
        if started.master is None:
            raise RuntimeError("a command with a terminal came without its other end")
        return LocalAttached(started, {started.master: stdout}, stdin, started.master, alive)
    theirs: list[int] = []
    ours: list[int] = []
    try:
        if stdin is None:
            theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        else:
            _pipe(theirs, ours)
        for _ in (stdout, stderr):
            _pipe(ours, theirs)
        started = joined.start(place, what, (theirs[0], theirs[1], theirs[2]))
    except BaseException:
        _close(ours)
        raise
    finally:
        _close(theirs)
    entry = ours[0] if stdin is not None else None
    return LocalAttached(started, dict(zip(ours[-2:], (stdout, stderr), strict=True)), stdin, entry, alive)


def _pipe(reading: list[int], writing: list[int]) -> None:
    read, write = os.pipe()
    reading.append(read)
    writing.append(write)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
