"""The protocol between the host and the guest's init over the serial port: one word per message.

The init sends its words through the guest's kernel log, as lines "@NONCE WORD [CODE]"; see vm/guest/init. They are also
in the console's log file, which remains after the machine has ended.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from sandbox.errors import EngineError, NotReadyError

BOOT, START, EXIT = "boot", "start", "exit"
STOP, SIGNAL = "stop", "signal"

_CONNECT_TIMEOUT = 5.0
_LOOK_EVERY = 0.5
"""Seconds between checks that QEMU runs; usually the connection is lost at once when it ends."""
_TAIL = 65536


def rotated(path: Path) -> list[Path]:
    """Return the parts of a log that virtlogd rotates, oldest first: PATH.2, PATH.1, PATH.0 and PATH."""
    parts = [(int(part.suffix[1:]), part) for part in path.parent.glob(f"{path.name}.*") if part.suffix[1:].isdigit()]
    return [*(part for _, part in sorted(parts, reverse=True)), path]


def find_word(text: bytes, nonce: str, word: str) -> int | None:
    """Return the number after a word of the init (0 without one); None if the word was not sent."""
    pattern = rf"^\[ *\d+\.\d+\] @{re.escape(nonce)} {word}(?: (\d+))?\r?$"
    match = re.search(pattern.encode("ascii"), text, re.MULTILINE)
    return None if match is None else int(match[1] or 0)


def exit_code(log: Path, nonce: str) -> int | None:
    """Return the workload's exit code as the init sent it last; None if it sent none."""
    text = b""
    for part in rotated(log)[-2:]:
        with suppress(OSError):
            text += part.read_bytes()[-_TAIL:]
    return find_word(text, nonce, EXIT)


def last_message(text: bytes) -> str | None:
    """Return the console's line that best explains why the machine ended, for an error message."""
    lines = [line.strip() for line in text[-_TAIL:].decode("utf-8", "replace").splitlines() if line.strip()]
    # A panic is followed by a stack trace, which does not help a user.
    telling = [line for line in lines if "] sandbox: " in line or "Kernel panic" in line] or lines
    return "".join(c if c.isprintable() else "?" for c in telling[-1]) if telling else None


class Console:
    """A connection to the serial port. QEMU accepts one at a time, so it is kept open as briefly as possible."""

    def __init__(self, path: Path, nonce: str) -> None:
        self.nonce = nonce
        self._seen = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_CONNECT_TIMEOUT)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise EngineError(f"the machine's console cannot be reached: {error.strerror or error}") from error

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, so that others can connect. Idempotent."""
        self._socket.close()

    def send(self, word: str) -> None:
        """Send a word to the init.

        Raises:
            EngineError: the machine has ended.
        """
        try:
            self._socket.sendall(word.encode("ascii") + b"\n")
        except OSError as error:
            raise EngineError(f"{word!r} could not be sent to the machine: {error.strerror or error}") from error

    def wait(self, words: Iterable[str], deadline: float, alive: Callable[[], bool]) -> str:
        """Wait until the init has sent one of these words, and return it.

        Args:
            words: in order of preference.
            deadline: a value of time.monotonic().
            alive: returns whether QEMU runs.

        Raises:
            EngineError: the machine ended.
            NotReadyError: the deadline passed.
        """
        wanted = tuple(words)
        while True:
            for word in wanted:
                if find_word(self._seen, self.nonce, word) is not None:
                    return word
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotReadyError(f"the machine did not report {wanted[0]!r} in time", self._hint())
            self._socket.settimeout(min(left, _LOOK_EVERY))
            try:
                chunk = self._socket.recv(4096)
            except TimeoutError:
                if alive():
                    continue
                chunk = b""
            except OSError:
                chunk = b""
            if not chunk:
                raise EngineError(f"the machine ended before it reported {wanted[0]!r}", self._hint())
            self._seen += chunk

    def _hint(self) -> str | None:
        message = last_message(self._seen)
        return None if message is None else f"its console ends: {message}"
