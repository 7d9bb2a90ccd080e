"""Write checked entries as files below a new directory, or into a new archive.

Every name is opened part by part with O_NOFOLLOW, relative to a descriptor (openat(2)), and created with O_EXCL. So
even if the checks missed something, no link is followed and no existing file is changed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sandbox.copying.reader import BLOCK, HostileError, Kind
from sandbox.copying.validation import Member

STAGE_PREFIX = ".sandbox-cp-"
TREE = "tree"
"""The name, in a staging directory, of the copied directory or file."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def stage(parent: int) -> Iterator[int]:
    """Create a staging directory that only root can enter, and remove it with its content at the end of the block.

    Args:
        parent: descriptor of the directory to create it in.

    Yields:
        A descriptor of it.

    Raises:
        OSError
    """
    name = STAGE_PREFIX + secrets.token_hex(6)
    os.mkdir(name, 0o700, dir_fd=parent)
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(name, dir_fd=parent)


class Unpacker:
    """Creates files from entries, at the name TREE in a staging directory."""

    def __init__(self, staged: int) -> None:
        self._stage = staged
        self._folders: list[Member] = []
        self.links: list[tuple[str, ...]] = []
        """The symbolic links created so far."""
        self.size = 0
        """Bytes of content written so far."""

    def add(self, member: Member, content: Iterable[bytes]) -> None:
        """Create one entry.

        Raises:
            OSError
            HostileError: the name exists, because the file system treats two names as one.
        """
        path = (TREE, *member.path)
        with self._folder(path[:-1]) as parent:
            try:
                self._make(member, path[-1], parent, content)
            except FileExistsError:
                raise HostileError(f"the sandbox sent {'/'.join(member.path)!r} twice") from None

    def _make(self, member: Member, name: str, parent: int, content: Iterable[bytes]) -> None:
        if member.kind is Kind.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._folders.append(member)  # its mode is set last: it may forbid creating files in it
        elif member.kind is Kind.SYMLINK:
            os.symlink(member.link, name, dir_fd=parent)
            self.links.append(member.path)
            os.utime(name, (member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)
        elif member.kind is Kind.HARDLINK:
            with self._folder((TREE, *member.source[:-1])) as origin:
                os.link(member.source[-1], name, src_dir_fd=origin, dst_dir_fd=parent, follow_symlinks=False)
        else:
            self._write(member, name, parent, content)

    def _write(self, member: Member, name: str, parent: int, content: Iterable[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        with open(descriptor, "wb", buffering=0) as stream:
            for piece in content:
                write_all(descriptor, piece)
                self.size += len(piece)
            os.fchmod(stream.fileno(), member.mode)
            os.utime(stream.fileno(), (member.mtime, member.mtime))

    @contextmanager
    def _folder(self, path: tuple[str, ...]) -> Iterator[int]:
        descriptor = os.dup(self._stage)
        try:
            for part in path:
                inner = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def finish(self) -> None:
        """Set the modes and times of the directories, the innermost first.

        Raises:
            OSError
        """
        for member in reversed(self._folders):
            with self._folder((TREE, *member.path)) as descriptor:
                os.fchmod(descriptor, member.mode)
                os.utime(descriptor, (member.mtime, member.mtime))


class Archive:
    """Writes entries into a new archive, so that no header from the sandbox is passed on."""

    def __init__(self, descriptor: int, top: str) -> None:
        """Write an archive.

        Args:
            descriptor: where to write it.
            top: directory to put in front of every name; empty for none.
        """
        self._out = descriptor
        self._top = (top,) if top else ()
        self.size = 0

    def add(self, member: Member, content: Iterable[bytes]) -> None:
        """Write one entry.

        Raises:
            OSError: BrokenPipeError if the reader has closed the pipe.
        """
        name = "/".join((*self._top, *member.path))
        if not name:
            return  # the content of a directory was asked for, without the directory
        info = tarfile.TarInfo(name)
        info.mode, info.mtime, info.size = member.mode, member.mtime, member.size
        info.type = _TYPES[member.kind]
        info.linkname = member.link or "/".join((*self._top, *member.source) if member.source else ())
        write_header(self._out, info)
        for piece in content:
            write_all(self._out, piece)
            self.size += len(piece)
        write_all(self._out, bytes(-member.size % BLOCK))

    def finish(self) -> None:
        """Write the end of the archive."""
        write_all(self._out, bytes(2 * BLOCK))


_TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
}


def write_header(descriptor: int, info: tarfile.TarInfo) -> None:
    """Write an entry's header, as GNU tar does."""
    write_all(descriptor, info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data, with as many calls of write(2) as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
