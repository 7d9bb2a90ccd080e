"""Reader of a workload's output from the log that its keeper writes; the same at every level.

The module `keeper`, whose process plays the role of conmon(8), describes the format. The log may grow and be rotated
while it is read: the reader keeps its file open, and continues with the next one at the end of a file that is no longer
written to.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from sandbox.errors import EngineError
from sandbox.isolation.keeper import CHUNK, FRAME, LOG, LOST, MAGIC, OLDER, PART

_BLOCK = 4 * CHUNK
"""Bytes to read at once; a frame is smaller."""
_FOLLOW_PAUSE = 0.05
"""Seconds between reads of a log that is followed."""

OnDrop = Callable[[int], object]
"""Called with the number of bytes missing from the log, at the place where they are missing."""


class Piece(NamedTuple):
    """Output that the keeper read at once, or a part of it.

    Attributes:
        stream: STDOUT or STDERR.
        time: when the keeper read it, in seconds since the epoch.
        data: bytes as written.
    """

    stream: int
    time: float
    data: bytes


def _ignore(_count: int) -> None:
    """Ignore missing bytes."""


class Reader:
    """A position in a log; `read` returns what was added since.

    Attributes:
        position: number of bytes that the workload wrote before it, including dropped ones.
    """

    def __init__(self, directory: Path, dropped: OnDrop = _ignore) -> None:
        self.position = 0
        self._directory = directory
        self._dropped = dropped
        self._file = -1
        self._offset = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self, *, last: bool = False) -> Iterator[Piece]:
        """Yield the pieces that were added since the last call.

        Args:
            last: whether nothing more will be added; then the bytes of a truncated frame are yielded too.

        Raises:
            EngineError: the file is not a log, or cannot be read.
        """
        try:
            while self._file >= 0 or self._advance():
                # Checked before the read, so that the last output is still read.
                newest = self._is_newest()
                yield from self._frames(last=last or not newest)
                if newest or not self._advance():
                    return
        except OSError as error:
            raise EngineError(f"the log cannot be read: {error.strerror}") from error

    def _is_newest(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._directory / LOG), os.fstat(self._file))
        except FileNotFoundError:  # during a rotation, or after the sandbox's removal
            return True

    def _advance(self) -> bool:
        """Open the next file; return False if there is none."""
        for name in (OLDER, LOG):
            try:
                found = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            head = os.read(found, PART.size)
            if len(head) < PART.size:  # it is just being created
                os.close(found)
                continue
            magic, begin = PART.unpack(head)
            if magic != MAGIC:
                os.close(found)
                raise EngineError("the log is damaged, or of another version of sandbox", "remove it with `sandbox rm`")
            if begin < self.position or (self._file >= 0 and os.path.samestat(os.fstat(found), os.fstat(self._file))):
                os.close(found)
                continue
            self._close()
            self._file, self._offset = found, PART.size
            if begin > self.position:
                self._dropped(begin - self.position)
                self.position = begin
            return True
        return False

    def _frames(self, *, last: bool) -> Iterator[Piece]:
        while block := os.pread(self._file, _BLOCK, self._offset):
            at = 0
            while at + FRAME.size <= len(block):
                stream, length, nanoseconds = FRAME.unpack_from(block, at)
                if stream == LOST:
                    at += FRAME.size
                    self._offset += FRAME.size
                    self.position += length
                    self._dropped(length)
                    continue
                data = block[at + FRAME.size : at + FRAME.size + length]
                if len(data) < length:
                    break
                at += FRAME.size + length
                self._offset += FRAME.size + length
                self.position += length
                yield Piece(stream, nanoseconds / 1e9, data)
            if at:
                continue
            if last and len(block) > FRAME.size:
                self._offset += len(block)
                self.position += len(block) - FRAME.size
                yield Piece(stream, nanoseconds / 1e9, block[FRAME.size :])
            return

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(
    directory: Path,
    *,
    follow: bool = False,
    tail: int | None = None,
    since: float | None = None,
    until: float | None = None,
    running: Callable[[], bool],
    dropped: OnDrop = _ignore,
) -> Iterator[Piece]:
    """Yield a workload's output in the order in which the keeper read it.

    Lines are counted per stream; a line ends with a line feed, or with the stream's end.

    Args:
        directory: of the sandbox.
        follow: wait for more output until `running` returns False.
        tail: begin with the last `tail` lines.
        since: leave out what was written before this time, in seconds since the epoch.
        until: leave out what was written after it.
        running: returns whether more output may come.
        dropped: called with a number of bytes missing from the log, unless `tail` or `since` leaves them out anyway.

    Raises:
        EngineError: the log cannot be read.
    """
    begin = _Beginning() if tail is None else _beginning(directory, tail, since)
    missing = 0

    def drop(count: int) -> None:
        nonlocal missing
        missing += count

    with Reader(directory, drop) as reader:
        while True:
            more = follow and running()
            before = reader.position
            for piece in reader.read(last=not more):
                if missing and (tail is None or before) and not (since is not None and piece.time < since):
                    dropped(missing)
                missing = 0
                if until is not None and piece.time > until:
                    return
                if since is None or piece.time >= since:
                    wanted = begin.cut(piece, reader.position - len(piece.data))
                    if wanted.data:
                        yield wanted
            if not more or (until is not None and time.time() > until):
                if missing:
                    dropped(missing)
                return
            time.sleep(_FOLLOW_PAUSE)


class _Beginning:
    """A filter that drops everything before the first line to show.

    Attributes:
        position: of that line.
        waiting: streams to be dropped up to the beginning of their next line.
    """

    def __init__(self, position: int = 0, waiting: set[int] | None = None) -> None:
        self.position = position
        self.waiting = waiting or set()

    def cut(self, piece: Piece, position: int) -> Piece:
        """Return the part to show of a piece at this position."""
        data = piece.data
        if position >= self.position and not self.waiting:
            return piece
        data = data[max(0, self.position - position) :]
        if data and piece.stream in self.waiting:
            _, found, data = data.partition(b"\n")
            if found:
                self.waiting.discard(piece.stream)
        return piece._replace(data=data)


def _beginning(directory: Path, lines: int, since: float | None) -> _Beginning:
    """Return the beginning of the last `lines` lines that the log has now."""
    marks: deque[tuple[int, int, frozenset[int], Piece]] = deque()
    """Pieces in which lines begin: position, number of these lines, streams that were in the middle of a line."""
    count = 0
    middle: frozenset[int] = frozenset()
    with Reader(directory) as reader:
        for piece in reader.read(last=True):
            if since is not None and piece.time < since:
                continue
            # A line feed begins a new line only if something follows it.
            begun = (piece.stream not in middle) + piece.data.count(b"\n", 0, len(piece.data) - 1)
            if begun:
                marks.append((reader.position - len(piece.data), begun, middle, piece))
                count += begun
            while marks and count - marks[0][1] >= lines:
                count -= marks.popleft()[1]
            middle = middle - {piece.stream} if piece.data.endswith(b"\n") else middle | {piece.stream}
        if lines == 0:
            return _Beginning(reader.position)
    if count < lines:
        return _Beginning()
    position, _, middle, piece = marks[0]
    at = 0
    for _ in range(count - lines + (piece.stream in middle)):
        at = piece.data.index(b"\n", at) + 1
    # If the other stream is in the middle of a line there, that line began earlier.
    return _Beginning(position + at, set(middle - {piece.stream}))
