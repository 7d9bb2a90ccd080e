"""Network namespaces: those with a name, a bind mount of the namespace's file as ip-netns(8) keeps them, and visits."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.kernel import syscalls


def is_netns(path: str) -> bool:
    """Whether a network namespace is mounted at the path."""
    try:
        here = os.stat(path)
        return (
            here.st_dev != os.stat(os.path.dirname(path)).st_dev and here.st_dev == os.stat("/proc/self/ns/net").st_dev
        )
    except OSError:
        return False


def _share(directory: str) -> None:
    """Make the directory a shared mount point, as ip-netns(8) does before its first name.

    Were it not one yet, a later `ip netns add` would mount it over itself, and hide and pin what we have put there.
    """
    try:
        syscalls.mount("", directory, "none", syscalls.MS_SHARED | syscalls.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it is no mount point
            raise
        syscalls.mount(directory, directory, "none", syscalls.MS_BIND | syscalls.MS_REC)
        syscalls.mount("", directory, "none", syscalls.MS_SHARED | syscalls.MS_REC)


def make_netns(path: str) -> None:
    """Make a network namespace and mount it at a path, as ip-netns(8) does.

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
    """Put the calling thread into the network namespace of a file, and back; sockets made inside stay in it.

    See setns(2): the network namespace is a thread's own.

    Raises:
        OSError: there is no such file, or it is no network namespace.
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
    """Unmount and remove a named network namespace; False when there is none."""
    if not os.path.lexists(path):
        return False
    with suppress(OSError):  # EINVAL: nothing is mounted there any more; two mounts may lie on one another
        while True:
            syscalls.umount(path, syscalls.MNT_DETACH)
    os.unlink(path)
    return True
