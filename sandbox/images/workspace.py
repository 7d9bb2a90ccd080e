"""Temporary directories of builds: locked while anything of the build lives, swept once nothing does."""

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
"""In the images directory: the whole output of the last build's tool."""

MIB = 1024 * 1024

_TRIES, _PAUSE = 50, 0.1
"""How often a directory that is being written to is removed, and the seconds in between."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where one build happens, on the file system that its result is renamed to.

    Attributes:
        result: the directory that becomes the entry.
        scratch: for tools; gone at the end.
        lease: a locked descriptor for tools to inherit.
        log: where tools' output goes.
    """

    result: Path
    scratch: Path
    lease: int
    log: Path


@contextmanager
def workspace(needed: int) -> Iterator[Workspace]:
    """A fresh workspace, removed at the end whatever happens; a SIGTERM meanwhile ends it in good order as well.

    Args:
        needed: bytes that the build takes, about; it is refused at once where the disk has less.

    Raises:
        ImageError: the disk is full, or refuses.
    """
    directory = paths.images_dir()
    with explained(), _terminable():
        free = _free(directory)
        if free < needed:
            raise ImageError(
                f"{directory} has {free // MIB} MiB free, and the build needs about {needed // MIB} MiB",
                "free some space, or set SANDBOX_STATE_DIR to another file system",
            )
        import tempfile  # as elsewhere here: most starts build nothing

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
    """Give a finished result its name, in one step and only once its bytes are on the disk.

    Raises:
        ImageError: the disk refuses.
    """
    with explained():
        # A rename may reach the disk before the data does; then a crash leaves an image of empty files.
        import subprocess

        done = subprocess.run(["sync", "--file-system", str(space.result)], capture_output=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"the image could not be written to disk: {done.stderr.decode(errors='replace').strip()}")
        space.result.rename(target)


def stale() -> list[Path]:
    """Temporary directories of builds that died. Call it with the lock of the images held."""
    try:
        found = [path for path in paths.images_dir().iterdir() if path.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    return sorted(path for path in found if not _leased(path))


def discard(path: Path) -> None:
    """Remove a directory tree, at once from sight; never across a mount.

    Raises:
        ImageError: something is mounted below it, or the disk refuses.
    """
    with explained():
        if mounted := mounts_below(path):
            raise ImageError(f"{path} is not removed: {mounted[0]} is mounted there", f"umount {mounted[0]}")
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
    # The last tool of a builder that was killed may still be writing for a moment.
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
    raise ImageError(f"{path} cannot be removed: something keeps writing to it", f"lsof +D {path} shows what")


def mounts_below(path: Path) -> list[str]:
    """Mount points at or below a path in this process's mount namespace (proc(5), mountinfo)."""
    wanted = os.path.realpath(path)
    return [mount.target for mount in procfs.own_mounts() if f"{mount.target}/".startswith(f"{wanted}/")]


@contextmanager
def explained() -> Iterator[None]:
    """Turn an OSError of a build into one line."""
    try:
        yield
    except SandboxError:
        raise
    except OSError as error:
        directory = paths.images_dir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(
                f"the disk is full: {error.filename or directory}",
                "free some space, or set SANDBOX_STATE_DIR to another file system",
            ) from error
        hint = "run it as root" if isinstance(error, PermissionError) else None
        raise ImageError(f"{error.filename or directory}: {error.strerror}", hint) from error


def _free(directory: Path) -> int:
    usage = os.statvfs(directory)
    return usage.f_bavail * usage.f_frsize


def _leased(path: Path) -> bool:
    """Whether a process of the build still lives; it inherited the lock."""
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
    """Make SIGTERM unwind the stack, where nobody else handles it."""
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
