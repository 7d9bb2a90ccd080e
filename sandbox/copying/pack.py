"""An archive of the host's files, for tar(1) inside a sandbox to unpack. Links within are copied, not followed."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable

from sandbox.copying.reader import BLOCK
from sandbox.copying.unpack import write_all, write_header
from sandbox.errors import EngineError

_CHUNK = 256 * 1024
_PERMISSIONS = 0o777

Note = Callable[[str], None]
"""Takes one line on what was left out."""


class Packer:
    """Writes the host's files into an archive."""

    def __init__(self, descriptor: int, note: Note) -> None:
        self._out = descriptor
        self._note = note
        self.size = 0
        """Bytes of content that were written."""

    def add(self, folder: int, name: str, as_name: str) -> None:
        """Write one file, link or directory with all that is in it.

        Args:
            folder: descriptor of the directory that it is in.
            name: of it there.
            as_name: in the archive.

        Raises:
            OSError: BrokenPipeError where the sandbox's tar has ended.
            EngineError: a file became shorter while it was read.
        """
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            info = _info(as_name, tarfile.SYMTYPE, status)
            info.linkname = os.readlink(name, dir_fd=folder)
            write_header(self._out, info)
        elif stat.S_ISDIR(status.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                write_header(self._out, _info(as_name, tarfile.DIRTYPE, os.fstat(inner)))
                self.add_content(inner, as_name)
            finally:
                os.close(inner)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(folder, name, as_name)
        else:
            self._note(f"left out, being neither file, directory nor link: {as_name}")

    def add_content(self, folder: int, as_name: str) -> None:
        """Write what is in a directory, without the directory itself.

        Args:
            folder: descriptor of the directory.
            as_name: of the directory in the archive; empty for the archive's top.

        Raises:
            OSError, EngineError: as for `add`.
        """
        for name in sorted(os.listdir(folder)):
            self.add(folder, name, f"{as_name}/{name}" if as_name else name)

    def _add_file(self, folder: int, name: str, as_name: str) -> None:
        # O_NONBLOCK: should it have become a named pipe meanwhile, the open does not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=folder), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                self._note(f"left out, having changed meanwhile: {as_name}")
                return
            info = _info(as_name, tarfile.REGTYPE, status)
            info.size = status.st_size
            write_header(self._out, info)
            left = info.size
            while left:
                piece = stream.read(min(left, _CHUNK))
                if not piece:
                    raise EngineError(f"{name} became shorter while it was read")
                write_all(self._out, piece)
                left -= len(piece)
            write_all(self._out, bytes(-info.size % BLOCK))
            self.size += info.size

    def pass_on(self, descriptor: int) -> None:
        """Write a whole archive that somebody else made.

        Raises:
            OSError: it cannot be read.
        """
        while piece := os.read(descriptor, _CHUNK):
            try:
                write_all(self._out, piece)
            except BrokenPipeError:
                return  # tar reads no further than the end mark, and archives may be padded beyond it
            self.size += len(piece)

    def finish(self) -> None:
        """Write the end mark."""
        write_all(self._out, bytes(2 * BLOCK))


def _info(name: str, kind: bytes, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = status.st_mode & _PERMISSIONS
    info.mtime = max(int(status.st_mtime), 0)
    return info
