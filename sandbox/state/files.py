"""Read and remove files of the state directory as untrusted input: follow no links, and never block."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from sandbox.kernel import procfs

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags to open a file without following a link, or waiting for the other end of a FIFO."""


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory from the kernel's table (proc_pid_mountinfo(5)), as resolved paths.

    os.path.ismount is not enough: it does not detect a bind mount within one file system.

    Raises:
        OSError
    """
    prefix = f"{os.path.realpath(directory)}/"
    return [mount.target for mount in procfs.own_mounts() if mount.target.startswith(prefix)]


def is_directory(path: Path) -> bool:
    """Return whether it is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a directory with its contents, or a file. Idempotent; links are removed, not followed."""
    while os.path.lexists(path):
        # Another command may be removing it at the same time: if an entry is gone, start again with the rest.
        with suppress(FileNotFoundError):
            if is_directory(path):
                shutil.rmtree(path)
            else:
                path.unlink()


def read(path: Path, limit: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be opened, or is a symbolic link.
        ValueError: it is not a regular file, or larger than `limit` bytes.
    """
    descriptor = os.open(path, _READ)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError("it is too large to be one of ours")
    return content


def write_new(path: Path, content: bytes) -> None:
    """Create a file that only its owner can read, and write to it.

    Raises:
        OSError
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def entries(directory: Path) -> list[Path]:
    """Return the entries of a directory, sorted by name; none if it does not exist."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
