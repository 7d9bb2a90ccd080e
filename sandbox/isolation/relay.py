"""The relay: passes bytes between a command inside and the caller's descriptors, the same at every level.

The command never gets a descriptor of the caller's own: a terminal or a file of the host in its hands would be a way
out. A level provides a `Backend`, a handful of blocking calls over whatever leads to its command (pipes and a pidfd, an
upgraded connection to dockerd, an SSH channel), and hands it over once the command has begun:

    return Relay(backend, stdin=stdin, stdout=to_descriptor(stdout), stderr=to_descriptor(stderr), terminal=...)

One thread reads and passes output on, one passes input, if there is any. What differs between levels is the backend's:
`read` ends when the command has, however the level learns of that.
"""

from __future__ import annotations

import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from sandbox.interrupts import wait_event
from sandbox.isolation.base import Attached, ExecResult, WindowSize
from sandbox.isolation.keeper import STDERR, STDOUT

CHUNK = 65536
END_OF_INPUT = b"\x04"
"""VEOF, what a person types to end the input (termios(3)): a terminal has no end that could be closed."""
_DEATH = 5.0
"""Seconds that a command which was ended gets to be gone."""
_MOMENT = 0.2
"""Seconds that a write to a caller who reads no more may take, once the command is given up."""

Sink = Callable[[bytes], object]
"""Takes what the command wrote; an OSError means that nobody wants it any more."""


class Backend(ABC):
    """What leads to one command inside. Calls block; each is made by one thread at a time."""

    @abstractmethod
    def read(self) -> tuple[int, bytes]:
        """(STDOUT or STDERR, bytes) of what comes next; no bytes once the command has ended and all of it was read.

        What a child that the command left behind writes later does not count.
        """

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Pass all of it to the command's input; False when it takes no more."""

    @abstractmethod
    def close_write(self) -> None:
        """End the command's input; not called with a terminal."""

    @abstractmethod
    def resize(self, size: WindowSize) -> None:
        """Tell the command's terminal its size; nothing happens without one, or when the command has ended."""

    @abstractmethod
    def unread(self, stream: int) -> None:
        """Nobody takes this stream any more: let the command feel it as it would in a pipeline (SIGPIPE)."""

    @abstractmethod
    def end(self) -> None:
        """Kill the command, if it still runs, and what it started; a `read` or `write` in progress returns."""

    @abstractmethod
    def exit_code(self, timeout: float | None) -> int:
        """The command's exit code, 128+n for a signal, once `read` has ended.

        Raises:
            TimeoutError
            EngineError: the sandbox ended first, or the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything; no other call comes after."""


class Relay(Attached):
    """A command that runs inside, with its bytes passed on."""

    def __init__(self, backend: Backend, *, stdin: int | None, stdout: Sink, stderr: Sink, terminal: bool) -> None:
        """Take over a command that has begun, and start passing bytes.

        Args:
            backend: leads to it.
            stdin: the caller's descriptor to read its input from; stays the caller's.
            stdout: takes its output.
            stderr: takes its errors.
            terminal: whether it has a terminal.
        """
        self._backend = backend
        self._sinks = {STDOUT: stdout, STDERR: stderr}
        self._terminal = terminal
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._giving = False
        self._lock = threading.Lock()
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        self._threads = [threading.Thread(target=self._pass_output, name="output", daemon=True)]
        if stdin is not None:
            self._threads.append(threading.Thread(target=self._pass_input, args=(stdin,), name="input", daemon=True))
        for thread in self._threads:
            thread.start()

    def resize(self, size: WindowSize) -> None:
        with self._lock:
            if self._terminal and not self._closed and not self._over.is_set():
                self._backend.resize(size)

    def wait(self, timeout: float | None = None) -> int:
        """As `Attached.wait`, for at most so many seconds.

        Raises:
            TimeoutError
            EngineError: the sandbox ended first, or the engine failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not wait_event(self._over, timeout):
            raise TimeoutError
        if self._failure is not None:
            self.close()
            raise self._failure
        code = self._backend.exit_code(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self.close()
        return code

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if not self._over.is_set():
                self._backend.end()
        finally:
            os.close(self._wake_write)
            begin = time.monotonic()
            while (alive := any(one.is_alive() for one in self._threads)) and time.monotonic() - begin < _DEATH:
                for one in self._threads:
                    one.join(_MOMENT / 10)
                if self._giving and time.monotonic() - begin > _MOMENT:
                    break
            # A thread that hangs in a write to the caller's descriptor keeps what it uses: closed, its numbers could
            # soon be somebody else's.
            if not alive:
                os.close(self._wake_read)
                self._backend.close()

    def _pass_output(self) -> None:
        try:
            while True:
                stream, data = self._backend.read()
                if not data:
                    return
                sink = self._sinks.get(stream)
                if sink is None or self._closed:
                    continue
                try:
                    self._giving = True
                    sink(data)
                except OSError:
                    del self._sinks[stream]
                    self._backend.unread(stream)
                finally:
                    self._giving = False
        except BaseException as error:
            self._failure = error
            self._backend.end()
        finally:
            self._over.set()

    def _pass_input(self, stdin: int) -> None:
        poller = select.poll()
        poller.register(stdin, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while not self._over.is_set():
            if any(descriptor == self._wake_read for descriptor, _ in poller.poll()):
                return
            try:
                data = os.read(stdin, CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # a terminal that was hung up
                data = b""
            if not data:
                if self._terminal:
                    self._backend.write(END_OF_INPUT)
                else:
                    self._backend.close_write()
                return
            if not self._backend.write(data):
                return


def collect(backend: Backend, command: Sequence[str], timeout: float | None) -> ExecResult:
    """Wait for a command that has begun and has no input; its exit code and all that it wrote.

    Raises:
        TimeoutError: it was ended.
        EngineError
    """
    out: list[bytes] = []
    err: list[bytes] = []
    running = Relay(backend, stdin=None, stdout=out.append, stderr=err.append, terminal=False)
    try:
        code = running.wait(timeout)
    except TimeoutError:
        raise TimeoutError(f"{command[0]!r} took longer than {timeout:g} s") from None
    finally:
        running.close()
    return ExecResult(code, b"".join(out), b"".join(err))


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
