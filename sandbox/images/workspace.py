"""Temporary directories of builds: locked while a process of the build lives, and removed afterwards."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sandbox.errors import ImageError, SandboxError
from sandbox.kernel import procfs
from sandbox.state import paths

PREFIX = ".tmp-"
LEASE_FILE = "lease"
LOG_FILE = "build.log"
"""Name of the file, in the images directory, with the whole output of the last build's tool."""

MIB = 1024 * 1024

_TRIES, _PAUSE = 50, 0.1
"""Number of attempts to remove a directory that is being written to, and the seconds between them."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The directories of one build, on the file system of the images.

    Attributes:
        result: the directory that becomes the entry.
        scratch: a temporary directory for tools.
        lease: a locked descriptor for tools to inherit.
        log: the file for tools' output.
    """

    result: Path
    scratch: Path
    lease: int
    log: Path


@contextmanager
def workspace(needed: int) -> Iterator[Workspace]:
    """Create a workspace for a block, and remove it at the end, also after an error or SIGTERM.

    Args:
        needed: approximate bytes that the build takes; if the disk has less, it is refused at once.

    Raises:
        ImageError: the disk is full, or writing failed.
    """
    directory = paths.images_dir()
    with image_errors(), _terminable():
        free = _free(directory)
        if free < needed:
            raise ImageError(
                f"{directory} has {free // MIB} MiB free, and the build needs about {needed // MIB} MiB",
                "free space, or set SANDBOX_STATE_DIR to another file system",
            )
        import tempfile  # imported here because most starts build nothing

        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=directory))
        lease = os.open(root / LEASE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lease, fcntl.LOCK_EX)
            root.chmod(0o711)  # apt downloads as its own user
            space = Workspace(root / "result", root / "scratch", lease, directory / LOG_FILE)
            space.result.mkdir(mode=0o755)
            space.result.chmod(0o755)  # whatever the umask
            space.scratch.mkdir(mode=0o711)
            space.scratch.chmod(0o711)
            yield space
        finally:
            os.close(lease)
            discard(root)


def publish(space: Workspace, target: Path) -> None:
    """Rename a finished result to its final name, once its data is on disk.

    Raises:
        ImageError: writing failed.
    """
    with image_errors():
        # A rename may reach the disk before the data; after a crash, the image would then have empty files.
        import subprocess

        done = subprocess.run(["sync", "--file-system", str(space.result)], capture_output=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"the image could not be written to disk: {done.stderr.decode(errors='replace').strip()}")
        space.result.rename(target)


def stale() -> list[Path]:
    """Return the temporary directories of dead builds. The caller holds the lock of the images."""
    try:
        found = [path for path in paths.images_dir().iterdir() if path.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(path for path in found if not _leased(path))


def discard(path: Path) -> None:
    """Remove a directory tree, which is renamed first, and never across a mount point.

    Raises:
        ImageError: something is mounted below it, or a file cannot be removed.
    """
    with image_errors():
        if mounted := mounts_below(path):
            raise ImageError(f"{path} cannot be removed: {mounted[0]} is a mount point in it", f"umount {mounted[0]}")
        if not path.name.startswith(PREFIX):
            import tempfile

            hidden = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
            try:
                path.rename(hidden / path.name)
            except FileNotFoundError:
                hidden.rmdir()
                return
            path = hidden
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    # The last tool of a killed builder may still write for a moment.
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                time.sleep(_PAUSE)
                continue
        return
    raise ImageError(f"{path} cannot be removed: a process keeps writing to it", f"lsof +D {path} shows what")


def mounts_below(path: Path) -> list[str]:
    """Return the mount points at or below a path in this mount namespace (proc(5), mountinfo)."""
    wanted = os.path.realpath(path)
    return [mount.target for mount in procfs.own_mounts() if f"{mount.target}/".startswith(f"{wanted}/")]


@contextmanager
def image_errors() -> Iterator[None]:
    """Turn an OSError in a block into an ImageError with a one-line message."""
    try:
        yield
    except SandboxError:
        raise
    except OSError as error:
        directory = paths.images_dir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(
                f"the disk is full: {error.filename or directory}",
                "free space, or set SANDBOX_STATE_DIR to another file system",
            ) from error
        hint = "run it as root" if isinstance(error, PermissionError) else None
        raise ImageError(f"{error.filename or directory}: {error.strerror}", hint) from error


def _free(directory: Path) -> int:
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def _leased(path: Path) -> bool:
    """Return whether a process of the build still lives, and so holds the lock that it inherited."""
    try:
        descriptor = os.open(path / LEASE_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM raise SystemExit during a block, unless the program handles it already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
