"""Create, enter and remove named network namespaces: bind mounts of their files, as ip-netns(8) makes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.kernel import syscalls


def is_netns(path: str) -> bool:
    """Return whether a network namespace is mounted at a path."""
    try:
        here = os.stat(path)
        return (
            here.st_dev != os.stat(os.path.dirname(path)).st_dev and here.st_dev == os.stat("/proc/self/ns/net").st_dev
        )
    except OSError:
        return False


def _share(directory: str) -> None:
    """Make a directory a shared mount point, as ip-netns(8) does before it adds a namespace.

    Otherwise a later `ip netns add` would mount the directory over itself, and hide and pin our mounts in it.
    """
    try:
        syscalls.mount("", directory, "none", syscalls.MS_SHARED | syscalls.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it is not a mount point
            raise
        syscalls.mount(directory, directory, "none", syscalls.MS_BIND | syscalls.MS_REC)
        syscalls.mount("", directory, "none", syscalls.MS_SHARED | syscalls.MS_REC)


def make_netns(path: str) -> None:
    """Create a network namespace and mount it at a path, as ip-netns(8) does.

    Raises:
        OSError
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _share(str(target.parent))
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            syscalls.mount("/proc/self/ns/net", path, None, syscalls.MS_BIND)
        except OSError as error:
            code = error.errno or 1
        os.write(writing, code.to_bytes(4, "little"))
        os._exit(0)
    os.close(writing)
    answer = int.from_bytes(os.read(reading, 4), "little")
    os.close(reading)
    os.waitpid(child, 0)
    if answer:
        target.unlink()
        raise OSError(answer, os.strerror(answer), path)


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Move the calling thread into the network namespace of a file for a block; sockets made in it stay there.

    See setns(2): the network namespace is an attribute of a thread.

    Raises:
        OSError: there is no such file, or it is not a network namespace.
    """
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            syscalls.setns(back, syscalls.CLONE_NEWNET)
    finally:
        os.close(back)


def remove_netns(path: str) -> bool:
    """Unmount and remove a named network namespace. Returns False if there is none."""
    if not os.path.lexists(path):
        return False
    with suppress(OSError):  # EINVAL ends the loop: several mounts may be stacked, and now none is left
        while True:
            syscalls.umount(path, syscalls.MNT_DETACH)
    os.unlink(path)
    return True
