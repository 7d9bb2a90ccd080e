"""The workload's output as virtlogd keeps it: a file, and older parts of it that were rotated away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.isolation.vm.console import rotated

FLUSH = 0.5
"""Seconds after QEMU's end within which virtlogd has written what it said last."""
_CHUNK = 65536
_FOLLOW_PAUSE = 0.05


def read(path: Path, *, tail: int | None, follow: Callable[[], bool] | None) -> Iterator[bytes]:
    """Chunks of a log.

    Args:
        path: its newest part; it need not exist.
        tail: begin with the last so many lines.
        follow: whether more may come; None ends at what is there.
    """
    older = [part for part in rotated(path)[:-1] if part.exists()]
    skipped, offset = (0, 0) if tail is None else _begin_of_tail([*older, path], tail)
    for part in older[skipped:]:
        with suppress(OSError):
            yield part.read_bytes()[offset:]
        offset = 0
    yield from _newest(path, offset, follow)


def _begin_of_tail(parts: Sequence[Path], lines: int) -> tuple[int, int]:
    """Where the last lines begin: the number of whole parts before, and an offset in the next one.

    A line may go on from one part to the next; the end of the text ends a line even without a line feed.
    """
    missing, last = lines, True
    for number in range(len(parts) - 1, -1, -1):
        try:
            with parts[number].open("rb") as file:
                position = file.seek(0, os.SEEK_END)
                if lines == 0:
                    return number, position
                while position > 0:
                    size = min(_CHUNK, position)
                    position -= size
                    file.seek(position)
                    block = file.read(size)
                    end = len(block)
                    if last and block:
                        last = False
                        end -= block.endswith(b"\n")
                    while (found := block.rfind(b"\n", 0, end)) >= 0:
                        missing -= 1
                        if missing == 0:
                            return number, position + found + 1
                        end = found
        except FileNotFoundError:
            continue
    return 0, 0


def _newest(path: Path, offset: int, follow: Callable[[], bool] | None) -> Iterator[bytes]:
    """The newest part, and those that take its place when virtlogd rotates it meanwhile."""
    try:
        stream = path.open("rb", buffering=0)
    except OSError:
        return
    stream.seek(offset)
    ended_at: float | None = None
    try:
        while True:
            chunk = stream.read(_CHUNK)
            if chunk:
                yield chunk
                continue
            with suppress(OSError):
                if path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                    stream.close()
                    stream = path.open("rb", buffering=0)
                    continue
            if follow is None:
                return
            if ended_at is None and not follow():
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at >= FLUSH:
                return
            time.sleep(_FOLLOW_PAUSE)
    finally:
        stream.close()
