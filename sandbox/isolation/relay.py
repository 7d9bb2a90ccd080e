"""The relay copies bytes between a command run by `exec` or `attach` and the caller's descriptors, at every level.

It serves commands that are run beside the workload, for as long as their caller waits; the workload's own output goes
to the keeper (`keeper`, the counterpart of conmon(8)).

The command never gets one of the caller's own descriptors: a terminal or file of the host would let it escape. A level
provides a `Backend`, a few blocking calls over its connection to the command (pipes and a pidfd, an upgraded HTTP
connection to dockerd, an SSH channel), and hands it over once the command has begun:

    return Relay(backend, stdin=stdin, stdout=to_descriptor(stdout), stderr=to_descriptor(stderr), terminal=...)

One thread copies output, and another copies input if there is any. The levels differ only in their backends: `read`
returns no bytes once the command has ended, however the level finds that out.
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
"""The character VEOF (termios(3)), which ends the input of a terminal: one cannot close its writing end."""
_DEATH = 5.0
"""Seconds to wait for a command that was killed."""
_MOMENT = 0.2
"""Seconds that a write to a caller which no longer reads may still take after `close`."""

Sink = Callable[[bytes], object]
"""Called with the command's output; raises OSError if nobody reads it any more."""


class Backend(ABC):
    """A connection to one command inside. Its methods block; each is called by one thread at a time."""

    @abstractmethod
    def read(self) -> tuple[int, bytes]:
        """Return the next output as (STDOUT or STDERR, bytes); no bytes once the command has ended and all was read.

        Output that a child of the command writes after the command's end is not included.
        """

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Write all of it to the command's input; return False if the command accepts no more."""

    @abstractmethod
    def close_write(self) -> None:
        """End the command's input; not called with a terminal."""

    @abstractmethod
    def resize(self, size: WindowSize) -> None:
        """Set the size of the command's terminal; does nothing without one, or if the command has ended."""

    @abstractmethod
    def close_read(self, stream: int) -> None:
        """Close the reading end of an output stream: further writes fail as in a pipeline (SIGPIPE)."""

    @abstractmethod
    def end(self) -> None:
        """Kill the command, if it still runs, and its children; a `read` or `write` in progress returns."""

    @abstractmethod
    def exit_code(self, timeout: float | None) -> int:
        """Return the command's exit code, 128+n for a signal, once `read` has returned no bytes.

        Raises:
            TimeoutError
            EngineError: the sandbox ended first, or the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free all resources; no other method is called afterwards."""


class Relay(Attached):
    """A command that runs inside, whose input and output are copied."""

    def __init__(self, backend: Backend, *, stdin: int | None, stdout: Sink, stderr: Sink, terminal: bool) -> None:
        """Start copying the input and output of a command that has begun.

        Args:
            backend: the connection to it.
            stdin: a descriptor to read its input from; it is never closed here.
            stdout: called with its output.
            stderr: called with its error output.
            terminal: whether it has a terminal.
        """
        self._backend = backend
        self._sinks = {STDOUT: stdout, STDERR: stderr}
        self._terminal = terminal
        self._done = threading.Event()
        self._failure: BaseException | None = None
        self._writing = False
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
            if self._terminal and not self._closed and not self._done.is_set():
                self._backend.resize(size)

    def wait(self, timeout: float | None = None) -> int:
        """Wait as `Attached.wait` does, for at most `timeout` seconds.

        Raises:
            TimeoutError
            EngineError: the sandbox ended first, or the engine failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not wait_event(self._done, timeout):
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
            if not self._done.is_set():
                self._backend.end()
        finally:
            os.close(self._wake_write)
            begin = time.monotonic()
            while (alive := any(one.is_alive() for one in self._threads)) and time.monotonic() - begin < _DEATH:
                for one in self._threads:
                    one.join(_MOMENT / 10)
                if self._writing and time.monotonic() - begin > _MOMENT:
                    break
            # A thread may still hang in a write to the caller's descriptor. What it uses stays open: descriptor numbers
            # that were closed could be reused under it.
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
                    self._writing = True
                    sink(data)
                except OSError:
                    del self._sinks[stream]
                    self._backend.close_read(stream)
                finally:
                    self._writing = False
        except BaseException as error:
            self._failure = error
            self._backend.end()
        finally:
            self._done.set()

    def _pass_input(self, stdin: int) -> None:
        poller = select.poll()
        poller.register(stdin, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while not self._done.is_set():
            if any(descriptor == self._wake_read for descriptor, _ in poller.poll()):
                return
            try:
                data = os.read(stdin, CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # the terminal was hung up
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
    """Wait for a command that has begun and has no input; return its exit code and output.

    Raises:
        TimeoutError: it took longer, and was killed.
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
    """Return a sink that writes to a descriptor, which may be non-blocking."""

    def write(chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                select.select([], [descriptor], [])

    return write
