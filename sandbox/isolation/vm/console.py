"""The guest's serial port: the words of its init, and the host's words to it.

The init speaks through the guest's kernel log, a line "@NONCE WORD [CODE]" each; see vm/guest/init. What it said is
in the console's log file too, which outlives the machine.
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
"""Seconds between looks whether QEMU lives; a lost connection says so at once."""
_TAIL = 65536


def rotated(path: Path) -> list[Path]:
    """A log that virtlogd writes, oldest part first: it keeps PATH.2, PATH.1, PATH.0 and PATH."""
    parts = [(int(part.suffix[1:]), part) for part in path.parent.glob(f"{path.name}.*") if part.suffix[1:].isdigit()]
    return [*(part for _, part in sorted(parts, reverse=True)), path]


def find_word(text: bytes, nonce: str, word: str) -> int | None:
    """The number after the init's word (0 without one), None when it did not say it."""
    pattern = rf"^\[ *\d+\.\d+\] @{re.escape(nonce)} {word}(?: (\d+))?\r?$"
    match = re.search(pattern.encode("ascii"), text, re.MULTILINE)
    return None if match is None else int(match[1] or 0)


def exit_code(log: Path, nonce: str) -> int | None:
    """The workload's exit code, as the init said it last; None when it said none."""
    text = b""
    for part in rotated(log)[-2:]:
        with suppress(OSError):
            text += part.read_bytes()[-_TAIL:]
    return find_word(text, nonce, EXIT)


def last_words(text: bytes) -> str | None:
    """The line of the console that says best why the machine ended, for an error message."""
    lines = [line.strip() for line in text[-_TAIL:].decode("utf-8", "replace").splitlines() if line.strip()]
    # A panic is followed by where it happened, which tells a user nothing.
    telling = [line for line in lines if "] sandbox: " in line or "Kernel panic" in line] or lines
    return "".join(c if c.isprintable() else "?" for c in telling[-1]) if telling else None


class Console:
    """A connection to the serial port. QEMU takes one at a time: it is held for as short as possible."""

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
        """Leave the port to others. Idempotent."""
        self._socket.close()

    def send(self, word: str) -> None:
        """Say a word to the init.

        Raises:
            EngineError: the machine is gone.
        """
        try:
            self._socket.sendall(word.encode("ascii") + b"\n")
        except OSError as error:
            raise EngineError(f"the machine does not take {word!r}: {error.strerror or error}") from error

    def wait(self, words: Iterable[str], deadline: float, alive: Callable[[], bool]) -> str:
        """Wait until the init has said one of these words, and return which.

        Args:
            words: in order of preference.
            deadline: a value of time.monotonic().
            alive: whether QEMU runs.

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
                raise NotReadyError(f"the machine did not say {wanted[0]!r} in time", self._hint())
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
                raise EngineError(f"the machine ended before it said {wanted[0]!r}", self._hint())
            self._seen += chunk

    def _hint(self) -> str | None:
        words = last_words(self._seen)
        return None if words is None else f"its console ends: {words}"
