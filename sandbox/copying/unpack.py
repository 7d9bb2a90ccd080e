"""Checked entries made into files, below a directory that was made for them, or into a clean archive.

Every name is opened part by part with O_NOFOLLOW, relative to a descriptor (openat(2)), and made with O_EXCL: whatever
the checks before it overlooked, no link is followed and nothing that is there is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sandbox.copying.checked import Member
from sandbox.copying.reader import BLOCK, HostileError, Kind

STAGE_PREFIX = ".sandbox-cp-"
TREE = "tree"
"""What a stage holds: the directory or the file that was copied."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def stage(parent: int) -> Iterator[int]:
    """A fresh directory for the time of a block, that root alone can enter; removed with all that is in it.

    Args:
        parent: a descriptor of the directory to make it in.

    Yields:
        Its descriptor.

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
    """Makes files of entries, below the directory TREE of a stage."""

    def __init__(self, staged: int) -> None:
        self._stage = staged
        self._folders: list[Member] = []
        self.links: list[tuple[str, ...]] = []
        """The symbolic links that were made."""
        self.size = 0
        """Bytes of content that were written."""

    def add(self, member: Member, content: Iterable[bytes]) -> None:
        """Make one entry.

        Raises:
            OSError
            HostileError: the file system knows two of its names as one.
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
            self._folders.append(member)  # its mode comes last: it may forbid what is still to be made in it
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
        """Give the directories their modes and times, the innermost first.

        Raises:
            OSError
        """
        for member in reversed(self._folders):
            with self._folder((TREE, *member.path)) as descriptor:
                os.fchmod(descriptor, member.mode)
                os.utime(descriptor, (member.mtime, member.mtime))


class Archive:
    """Writes entries into an archive of our own making, so that nothing of the sandbox's headers is passed on."""

    def __init__(self, descriptor: int, top: str) -> None:
        """Write an archive.

        Args:
            descriptor: where to.
            top: stands before every name; empty to leave names as they are.
        """
        self._out = descriptor
        self._top = (top,) if top else ()
        self.size = 0

    def add(self, member: Member, content: Iterable[bytes]) -> None:
        """Write one entry.

        Raises:
            OSError: BrokenPipeError where the reader went away.
        """
        name = "/".join((*self._top, *member.path))
        if not name:
            return  # a directory's content, without the directory
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
        """Write the end mark."""
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
    """Write all of it, however many calls the kernel needs."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
