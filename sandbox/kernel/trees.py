"""Bind mounts of the host's files: copied on the host, and attached inside the sandbox.

The host's side opens the source without following symbolic links and copies its mount; the sandbox's side attaches the
copy at a target that is resolved in the same way. Neither path is looked up twice, so it cannot be swapped between
check and use.

Sources: openat2(2), open_tree(2), move_mount(2), mount_setattr(2), user_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.kernel import syscalls

_NO_LINKS = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True)
class Tree:
    """A copy of a mount that is not attached yet; it is gone with its last descriptor.

    Attributes:
        descriptor: descriptor of the copy.
        target: absolute path inside.
        directory: whether it is a directory, not a file.
        fresh: whether the target must be created first, in a tmpfs that the sandbox's own set-up has just mounted.
    """

    descriptor: int
    target: str
    directory: bool
    fresh: bool = False


def copy(source: str, target: str, *, read_only: bool, fresh: bool = False) -> Tree:
    """Copy the mount at a path of the host and all mounts below it, as nosuid, nodev and private.

    Raises:
        OSError: ELOOP, the path contains a symbolic link; ENOENT.
    """
    found = syscalls.openat2(syscalls.AT_FDCWD, source, os.O_PATH, _NO_LINKS)
    try:
        directory = stat.S_ISDIR(os.fstat(found).st_mode)
        tree = syscalls.open_tree(found)
    finally:
        os.close(found)
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    if read_only:
        attributes |= syscalls.MOUNT_ATTR_RDONLY
    try:
        syscalls.mount_setattr(tree, attributes, propagation=syscalls.MS_PRIVATE)
    except BaseException:
        os.close(tree)
        raise
    return Tree(tree, target, directory, fresh)


def map_ids(trees: Iterable[Tree], base: int, count: int) -> None:
    """Map the ids on disk, except 0, to the same ids inside a user namespace whose id 0 is `base` outside.

    Files of the host's root get an id that the user namespace does not have: nobody inside owns them, and root inside
    cannot create a file owned by the host's root. (Left unmapped, they could not be written by anybody, whatever their
    mode.) If the file system does not support this (EINVAL: it, or one mounted below, lacks FS_ALLOW_IDMAP), all owners
    appear as 65534 inside, and access is that of others.

    Args:
        trees: copies that are not attached yet; the kernel maps no others.
        base: id outside of the user namespace's id 0.
        count: number of ids in the user namespace.

    Raises:
        OSError
    """
    namespace = _user_namespace(f"0 {base + count} 1\n1 {base + 1} {count - 1}\n")
    try:
        for tree in trees:
            try:
                syscalls.mount_setattr(tree.descriptor, syscalls.MOUNT_ATTR_IDMAP, user_namespace=namespace)
            except OSError as error:
                # EPERM: a copy of a mount whose ids are mapped already, which cannot be mapped twice.
                if error.errno not in (errno.EINVAL, errno.EPERM):
                    raise
    finally:
        os.close(namespace)


def _user_namespace(line: str) -> int:
    """Return a descriptor of a user namespace without processes, with this uid and gid map (user_namespaces(7))."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(writing, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        if not os.read(reading, 1):
            raise OSError(errno.EPERM, "no user namespace could be created to map the ids of mounts")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(line, encoding="ascii")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def attach(trees: Sequence[Tree], root: str) -> None:
    """Attach copies below a root directory, in the given order, so that one may lie inside an earlier one.

    Raises:
        OSError: ELOOP, the path of a target contains a symbolic link; ENOENT, a target does not exist.
    """
    if not trees:
        return
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for tree in trees:
            below = tree.target.lstrip("/")
            if tree.fresh:
                _make(top, below, directory=tree.directory)
            flags = os.O_PATH | os.O_NOFOLLOW | (os.O_DIRECTORY if tree.directory else 0)
            target = syscalls.openat2(top, below, flags, _NO_LINKS | syscalls.RESOLVE_BENEATH)
            try:
                syscalls.move_mount(tree.descriptor, target)
            finally:
                os.close(target)
    finally:
        os.close(top)


def _make(top: int, below: str, *, directory: bool) -> None:
    """Create a target in a tmpfs that no other process can see yet."""
    parts = below.split("/")
    for count in range(1, len(parts) + (1 if directory else 0)):
        with suppress(FileExistsError):
            os.mkdir("/".join(parts[:count]), 0o755, dir_fd=top)
    if not directory:
        os.close(os.open(below, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=top))


def close(trees: Iterable[Tree]) -> None:
    """Close the descriptors; attached mounts stay."""
    for tree in trees:
        os.close(tree.descriptor)
