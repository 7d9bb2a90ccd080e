"""The log of a local sandbox, which is a plain file without times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from sandbox.spec import MIB, SandboxSpec

CHUNK = 65536
_FOLLOW_PAUSE = 0.05
"""Seconds between looks at a log that is followed."""
MIN_CAP = 64 * MIB


def cap(spec: SandboxSpec) -> int | None:
    """Bytes that a file written by the workload may have, and so the log: RLIMIT_FSIZE.

    The log is on the host's disk, and nothing else would stop a server that writes without end. Large enough for
    every file that fits below /tmp. None where the sandbox may write to the host's files anyway, and files larger
    than this may be what it is for; then the log has no limit either.
    """
    if any(not mount.read_only for mount in spec.mounts):
        return None
    return max(MIN_CAP, spec.disk)


def read(path: Path, *, tail: int | None, follow: bool, running: Callable[[], bool]) -> Iterator[bytes]:
    """Chunks of a log.

    Args:
        path: of the file; one that is not there is empty.
        tail: begin with the last so many lines.
        follow: go on until `running` says no.
        running: whether more may come.
    """
    try:
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        return
    with stream:
        if tail is not None:
            stream.seek(_start_of_tail(stream, tail))
        while True:
            # Asked before the read: what it wrote last is then still read.
            more = follow and running()
            chunk = stream.read(CHUNK)
            if chunk:
                yield chunk
            elif not more:
                return
            else:
                time.sleep(_FOLLOW_PAUSE)


def _start_of_tail(stream: FileIO, lines: int) -> int:
    """Where the last so many lines begin, found from the end: a log may have gigabytes."""
    end = stream.seek(0, os.SEEK_END)
    if lines <= 0:
        return end
    missing = lines
    at = end
    while at > 0:
        size = min(CHUNK, at)
        at -= size
        block = os.pread(stream.fileno(), size, at)
        # The line break that ends the last line begins no line after it.
        place = len(block) - 1 if at + size == end and block.endswith(b"\n") else len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            missing -= 1
            if not missing:
                return at + place + 1
    return 0
