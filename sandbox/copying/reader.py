"""A strict reader for untrusted archives in the format that `tar --create --format=gnu` writes.

The standard library's `tarfile` is not used: it accepts every variant of tar, keeps headers of any size in memory, and
its extraction filter has been bypassed (CVE-2025-4517). Here a header is at most one block and two names of PATH_MAX
bytes, and anything that GNU tar would not write is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from sandbox.errors import EngineError

BLOCK = 512
MAX_NAME = 4096
"""Bytes of a name including its NUL: PATH_MAX, limits.h(0p)."""
_CHUNK = 256 * 1024
_MAGIC = b"ustar  \0"
"""The magic of GNU tar's own format: OLDGNU_MAGIC in its tar.h."""
_LONG_NAME, _LONG_LINK = b"L", b"K"


class HostileError(EngineError):
    """The sandbox sent something that is not a GNU tar archive, or an entry that is not allowed."""


class Kind(StrEnum):
    """The type of an entry. The values appear in messages."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"


_KINDS = {b"0": Kind.FILE, b"\0": Kind.FILE, b"5": Kind.DIRECTORY, b"2": Kind.SYMLINK, b"1": Kind.HARDLINK}
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file's map",
    b"x": "an extended header",
    b"g": "an extended header",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as sent, not checked yet.

    Attributes:
        name: bytes as sent.
        kind: file, directory or link.
        mode: permission bits, as sent.
        mtime: seconds since the epoch, at least 0.
        size: bytes of content that follow; 0 for anything but a file.
        link: target of a link; empty otherwise.
    """

    name: bytes
    kind: Kind
    mode: int
    mtime: int
    size: int
    link: bytes = b""


class Reader:
    """Iterates over the entries of an archive. `content` returns the content of the current entry."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Read an archive.

        Args:
            read: returns between one and so many bytes, and none at the end of the stream.
        """
        self._read = read
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries up to the end of the archive.

        Raises:
            HostileError
        """
        while True:
            deque(self.content(), maxlen=0)  # skip what the caller did not read
            self._exactly(self._padding)
            self._padding = 0
            entry = self._next()
            if entry is None:
                return
            self._left = entry.size
            self._padding = -entry.size % BLOCK
            yield entry

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the current entry, in pieces.

        Raises:
            HostileError: the stream ended within the entry.
        """
        while self._left:
            piece = self._read(min(self._left, _CHUNK))
            if not piece:
                raise HostileError("the archive from the sandbox ended in the middle of a file")
            self._left -= len(piece)
            yield piece

    def _next(self) -> Entry | None:
        longs: dict[bytes, bytes] = {}
        while True:
            header = self._exactly(BLOCK)
            if not any(header):
                if longs or any(self._exactly(BLOCK)):
                    raise HostileError("the archive from the sandbox does not end as GNU tar's do")
                return None
            _check_header(header)
            flag = header[156:157]
            size = _number(header[124:136], "size")
            if flag in (_LONG_NAME, _LONG_LINK):
                if flag in longs or not 0 < size <= MAX_NAME:
                    raise HostileError("the archive from the sandbox has an invalid header for a long name")
                longs[flag] = self._exactly(size).partition(b"\0")[0]
                self._exactly(-size % BLOCK)
                continue
            return _entry(header, flag, size, longs)

    def _exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            piece = self._read(count - len(got))
            if not piece:
                raise HostileError("the archive from the sandbox ended early")
            got += piece
        return bytes(got)


def _check_header(header: bytes) -> None:
    """Check a header's magic and its checksum, which counts its own field as blanks (tar(5))."""
    if header[257:265] != _MAGIC:
        raise HostileError("the data from the sandbox is not a GNU tar archive")
    if sum(header[:148]) + 8 * 0x20 + sum(header[156:]) != _number(header[148:156], "checksum"):
        raise HostileError("the archive from the sandbox has a header with a wrong checksum")


def _entry(header: bytes, flag: bytes, size: int, longs: dict[bytes, bytes]) -> Entry:
    if flag not in _KINDS:
        raise HostileError(f"the archive from the sandbox has {_REFUSED.get(flag, 'an entry of unknown type')} in it")
    kind = _KINDS[flag]
    if kind is not Kind.FILE and size:
        raise HostileError(f"the archive from the sandbox has a {kind} with content")
    name = longs.get(_LONG_NAME, header[:100].partition(b"\0")[0])
    link = longs.get(_LONG_LINK, header[157:257].partition(b"\0")[0])
    return Entry(
        name=name,
        kind=kind,
        mode=_number(header[100:108], "mode") & 0o7777,
        mtime=_number(header[136:148], "time"),
        size=size,
        link=link if kind in (Kind.SYMLINK, Kind.HARDLINK) else b"",
    )


def _number(field: bytes, what: str) -> int:
    """Parse a number in octal, or in base 256 if its first byte has the high bit set (GNU tar's extension).

    A time before 1970, written in base 256 with a first byte of 0xff, counts as 0. No other field may be negative.
    """
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
        if value < 1 << 63:
            return value
    elif field[0] == 0xFF and what == "time":
        return 0
    else:
        digits = field.strip(b" \0")
        if digits and all(byte in b"01234567" for byte in digits):
            return int(digits, 8)
    raise HostileError(f"the archive from the sandbox has a header whose {what} is not a number")
