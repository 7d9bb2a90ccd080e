"""Run a command inside a sandbox with a pipe to its input or from its output, without blocking once it has ended."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from sandbox.errors import EngineError, SandboxError

if TYPE_CHECKING:
    from sandbox.isolation.base import Sandbox

_PAUSE = 0.05
"""Seconds between checks whether the command has ended, while it writes nothing."""
_MAX_STDERR = 4096
"""Bytes kept of its standard error."""
_END_TIMEOUT = 30.0
"""Seconds to wait for the command's end once its stream is complete."""
_MAX_TRAILING = 1024 * 1024
"""Bytes that may follow the end of the archive; tar pads to a record of 10 KiB."""


class Piped:
    """A command inside a sandbox, and our end of the pipe that is its input or its output.

    The other end belongs to the driver until the command has ended: some drivers pass it to the process, some copy the
    bytes in a thread. So our copy of that end is closed only when the driver reports the command's end, and reading
    does not depend on an end of file, which a process left behind inside could hold up.
    """

    def __init__(self, sandbox: Sandbox, argv: Sequence[str], *, into: bool) -> None:
        """Start the command.

        Args:
            sandbox: where to run it.
            argv: the command.
            into: True to write to its input, False to read its output.

        Raises:
            SandboxError: as for `Sandbox.attach`.
        """
        self._into = into
        self.bytes_read = 0
        """Bytes of its output read so far."""
        readable, writable = os.pipe()
        self.ours, self._theirs = (writable, readable) if into else (readable, writable)
        self._stderr_read, self._stderr_write = os.pipe()
        self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._ended = threading.Event()
        self._closing = threading.Lock()
        self._failure: SandboxError | None = None
        self._code: int | None = None
        self._stderr = bytearray()
        try:
            self._attached = sandbox.attach(
                argv,
                stdin=self._theirs if into else None,
                stdout=self._null if into else self._theirs,
                stderr=self._stderr_write,
            )
        except BaseException:
            for descriptor in (self.ours, self._theirs, self._stderr_read, self._stderr_write, self._null):
                os.close(descriptor)
            raise
        self._stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._stderr_reader.start()
        self._waiter.start()

    def _wait(self) -> None:
        try:
            self._code = self._attached.wait()
        except SandboxError as error:
            self._failure = error
        except OSError as error:
            self._failure = EngineError(f"the command inside was lost: {error.strerror}")
        finally:
            # The driver's threads must stop using the descriptors first: the number of a closed one is soon reused.
            self._release()
            self._ended.set()
            # From now on our writer gets EPIPE, our reader an end of file.
            for descriptor in (self._theirs, self._stderr_write, self._null):
                os.close(descriptor)

    def _release(self) -> None:
        with self._closing, suppress(SandboxError):  # what matters was raised, or is in `_failure`
            self._attached.close()

    def _read_stderr(self) -> None:
        while piece := self._read_when_ready(self._stderr_read, _MAX_STDERR):
            self._stderr += piece[: _MAX_STDERR - len(self._stderr)]

    def read(self, count: int) -> bytes:
        """Read at most so many bytes of its output; none once it has ended and all was read."""
        piece = self._read_when_ready(self.ours, count)
        self.bytes_read += len(piece)
        return piece

    def _read_when_ready(self, descriptor: int, count: int, deadline: float = math.inf) -> bytes:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while True:
            ended = self._ended.is_set()  # tested before the poll, so that the last output is still read
            if poller.poll(0 if ended else _PAUSE * 1000):
                return os.read(descriptor, count)
            if ended or time.monotonic() > deadline:
                return b""

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and the beginning of its standard error.

        Raises:
            EngineError: it still runs although its stream is complete.
            SandboxError: the sandbox ended first, or the engine failed.
        """
        deadline = time.monotonic() + _END_TIMEOUT
        if self._into:
            self._close_ours()  # it may take any time to process what it was sent
            self._ended.wait()
        else:
            # Read its last record too: a pipe closed early would end it by SIGPIPE.
            after = 0
            while after < _MAX_TRAILING and (piece := self._read_when_ready(self.ours, _MAX_TRAILING, deadline)):
                after += len(piece)
            if not self._ended.wait(max(deadline - time.monotonic(), 0) if after < _MAX_TRAILING else 0):
                raise EngineError("the command inside still runs although its stream is complete")
        self._stderr_reader.join()
        if self._failure is not None:
            raise self._failure
        return self._code or 0, self._stderr.decode("utf-8", "replace")

    def _close_ours(self) -> None:
        if self.ours >= 0:
            os.close(self.ours)
            self.ours = -1

    def __enter__(self) -> Piped:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_ours()
        self._release()
        if self._ended.wait(_END_TIMEOUT):
            self._stderr_reader.join()
            os.close(self._stderr_read)
