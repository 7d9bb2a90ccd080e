"""Files of the state directory, read and removed as untrusted: no link is followed, nothing is waited for."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from sandbox.kernel import procfs

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Never through a link, and never waiting for the other end of a FIFO."""


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points below a directory, by the kernel's table (proc_pid_mountinfo(5)), as resolved paths.

    os.path.ismount would not do: it does not see a bind mount within one file system.

    Raises:
        OSError
    """
    prefix = f"{os.path.realpath(directory)}/"
    return [mount.target for mount in procfs.own_mounts() if mount.target.startswith(prefix)]


def is_directory(path: Path) -> bool:
    """Tell whether it is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a directory and what is in it, or a file; links are removed, not followed. One that is gone is fine."""
    while os.path.lexists(path):
        # Another command may be removing it too: where that one was quicker, look again at what is left.
        with suppress(FileNotFoundError):
            if is_directory(path):
                shutil.rmtree(path)
            else:
                path.unlink()


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be opened, or is a symbolic link.
        ValueError: it is no regular file, or larger than `limit` bytes.
    """
    descriptor = os.open(path, _READ)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError("it is too large to be one of ours")
    return content


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, for root alone.

    Raises:
        OSError
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


def entries(directory: Path) -> list[Path]:
    """Return the entries of a directory, by name; none where there is no directory."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
