"""A command inside a guest, with descriptors of ours as its input and output: bytes are passed on by threads.

Two threads (three without a terminal, which has one stream for output and errors) stand between an SSH channel and the
descriptors. The channel's flow control holds a command back whose output nobody takes.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError
from sandbox.interrupts import LOOK_EVERY
from sandbox.isolation.base import Attached, WindowSize
from sandbox.isolation.vm.guest import Running

_CHUNK = 65536
_ANSWER_TIMEOUT = 30.0
_JOIN_TIMEOUT = 5.0
_END_OF_INPUT = b"\x04"
"""What a terminal takes for the end of its input (termios(3), VEOF)."""
BROKEN_PIPE = 128 + signal.SIGPIPE
"""What a shell would say of a command whose output nobody reads any more."""


def judge(name: str, line: bytes, command: str, directory: str) -> None:
    """Take what vm/guest/enter said of a command, "@NAME WORD", for what it means.

    Raises:
        CommandNotFoundError, CannotInvokeError, EngineError: it was not started.
    """
    mark, _, said = line.decode("utf-8", "replace").strip().partition(" ")
    if mark != f"@{name}":
        said = f"{mark} {said}"
    if said == "started":
        return
    if said == "not-found":
        raise CommandNotFoundError(f"there is no command {command!r} inside")
    if said == "not-executable":
        raise CannotInvokeError(f"{command!r} cannot be executed")
    if said == "no-directory":
        raise CannotInvokeError(f"there is no directory {directory!r} inside")
    if said == "no-room":
        raise EngineError(
            f"{command!r} was not started: the sandbox has as many processes as it may", "a higher --pids-limit"
        )
    raise EngineError(f"the guest did not start {command!r}: {said.strip() or 'it said nothing'}")


class VmAttached(Attached):
    """A command behind an SSH channel. Not started before `begin` was called."""

    def __init__(
        self,
        command: Running,
        *,
        output: tuple[int, int],
        terminal: bool,
        alive: Callable[[], bool],
        end: Callable[[], None],
    ) -> None:
        """A command that was asked for.

        Args:
            command: the same, as the SSH connection has it.
            output: descriptors for its output and errors.
            terminal: whether it has one.
            alive: whether the machine runs.
            end: kills all of the command.
        """
        self._command = command
        self._output = output
        self._terminal = terminal
        self._alive = alive
        self._end = end
        self._threads: list[threading.Thread] = []
        self._feeder: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None
        self._releasing = threading.Lock()
        self._broken = False
        self._closed = False

    def first_line(self) -> bytes:
        """What the guest says before the command does.

        Raises:
            EngineError: nothing, in time.
        """
        receive = self._command.read_out if self._terminal else self._command.read_err
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        line = b""
        while not line.endswith(b"\n"):
            try:
                got = receive(1)
            except TimeoutError:
                if self._alive() and time.monotonic() < deadline:
                    continue
                raise EngineError("the guest does not answer") from None
            if not got:
                break
            line += got
        return line

    def begin(self, stdin: int | None) -> None:
        """Pass bytes on from now on."""
        streams = [(self._command.read_out, self._output[0])]
        if not self._terminal:
            streams.append((self._command.read_err, self._output[1]))
        for receive, target in streams:
            self._threads.append(threading.Thread(target=self._pass_out, args=(receive, target), daemon=True))
        if stdin is not None:
            self._wake = os.pipe2(os.O_CLOEXEC)
            self._feeder = threading.Thread(target=self._pass_in, args=(stdin, self._wake[0]), daemon=True)
            self._feeder.start()
        elif not self._terminal:
            self._command.close_input()
        for thread in self._threads:
            thread.start()

    def _pass_out(self, receive: Callable[[int], bytes], target: int) -> None:
        while True:
            try:
                chunk = receive(_CHUNK)
            except TimeoutError:
                if self._alive():
                    continue
                return
            if not chunk:
                return
            try:
                _write(target, chunk)
            except OSError:  # nobody reads it any more
                self._broken = True
                self._finish()
                return

    def _pass_in(self, source: int, wake: int) -> None:
        poller = select.poll()
        poller.register(source, select.POLLIN)
        poller.register(wake, select.POLLIN)
        while True:
            if any(descriptor == wake for descriptor, _ in poller.poll()):
                return
            try:
                chunk = os.read(source, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # a terminal that was hung up
                chunk = b""
            if chunk:
                if self._send(chunk):
                    continue
            elif self._terminal:
                # Closing the channel's one direction would hang the terminal up, and lose what it shows last.
                self._send(_END_OF_INPUT)
            else:
                self._command.close_input()
            return

    def _send(self, data: bytes) -> bool:
        while data:
            try:
                sent = self._command.send(data)
            except TimeoutError:
                if self._alive() and not self._closed:
                    continue
                return False
            if not sent:
                return False
            data = data[sent:]
        return True

    def resize(self, size: WindowSize) -> None:
        if self._terminal and not self._command.ended():
            self._command.resize(size)

    def wait(self) -> int:
        for thread in self._threads:
            while thread.is_alive():
                thread.join(LOOK_EVERY)
        if self._broken:
            self._release()
            return BROKEN_PIPE
        code = self._command.exit_code(self._alive)
        self._release()
        if code is None:
            raise EngineError("the sandbox ended before the command did")
        return code

    def close(self) -> None:
        if not self._closed and not self._command.ended():
            self._finish()
        self._release()

    def _finish(self) -> None:
        """End the command, whatever it has become, and the channel with it."""
        if not self._closed:
            self._closed = True
            self._end()
            self._command.close()

    def _release(self) -> None:
        self._closed = True
        self._command.close()
        with self._releasing:  # one thread may wait for the end while another closes
            if self._wake is not None:
                os.write(self._wake[1], b".")
                if self._feeder is not None:
                    self._feeder.join(_JOIN_TIMEOUT)
                for descriptor in self._wake:
                    os.close(descriptor)
                self._wake = None
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_TIMEOUT)


def _write(descriptor: int, data: bytes) -> None:
    """All of it, to a descriptor that may be non-blocking: a terminal is, where another program made it so."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
