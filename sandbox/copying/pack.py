"""Pack files of the host into an archive for tar(1) inside a sandbox. Symbolic links are copied, not followed."""

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
"""Called with one line for each file that is left out."""


class Packer:
    """Writes files of the host into an archive."""

    def __init__(self, descriptor: int, note: Note) -> None:
        self._out = descriptor
        self._note = note
        self.size = 0
        """Bytes of content written so far."""

    def add(self, folder: int, name: str, as_name: str) -> None:
        """Write one file, symbolic link, or directory with its content.

        Args:
            folder: descriptor of its directory.
            name: its name in that directory.
            as_name: its name in the archive.

        Raises:
            OSError: BrokenPipeError if the sandbox's tar has ended.
            EngineError: a file shrank while it was read.
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
            self._note(f"left out: {as_name} is not a file, directory or symbolic link")

    def add_content(self, folder: int, as_name: str) -> None:
        """Write the content of a directory, without the directory itself.

        Args:
            folder: descriptor of the directory.
            as_name: the directory's name in the archive; empty for the archive's top.

        Raises:
            OSError, EngineError: as for `add`.
        """
        for name in sorted(os.listdir(folder)):
            self.add(folder, name, f"{as_name}/{name}" if as_name else name)

    def _add_file(self, folder: int, name: str, as_name: str) -> None:
        # O_NONBLOCK: if it was replaced by a named pipe meanwhile, the open does not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=folder), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                self._note(f"left out: {as_name} was replaced while it was copied")
                return
            info = _info(as_name, tarfile.REGTYPE, status)
            info.size = status.st_size
            write_header(self._out, info)
            left = info.size
            while left:
                piece = stream.read(min(left, _CHUNK))
                if not piece:
                    raise EngineError(f"{name} shrank while it was read")
                write_all(self._out, piece)
                left -= len(piece)
            write_all(self._out, bytes(-info.size % BLOCK))
            self.size += info.size

    def copy_archive(self, descriptor: int) -> None:
        """Write an existing archive, read from a descriptor.

        Raises:
            OSError: it cannot be read.
        """
        while piece := os.read(descriptor, _CHUNK):
            try:
                write_all(self._out, piece)
            except BrokenPipeError:
                return  # tar stops at the end mark, and archives may have padding after it
            self.size += len(piece)

    def finish(self) -> None:
        """Write the end of the archive."""
        write_all(self._out, bytes(2 * BLOCK))


def _info(name: str, kind: bytes, status: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = status.st_mode & _PERMISSIONS
    info.mtime = max(int(status.st_mtime), 0)
    return info
