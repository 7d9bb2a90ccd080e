"""Assemble the root of a namespace sandbox: read-only image, sized tmpfs, private /dev and /proc; then pivot_root.

This runs in the child, inside its new user and mount namespaces, as root of that user namespace. It uses the standard
library only. Sources: mount_namespaces(7), user_namespaces(7), pivot_root(2), tmpfs(5), proc(5); the masked paths are
the defaults of the OCI runtime specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sandbox.kernel import trees
from sandbox.kernel.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
    umount,
)
from sandbox.kernel.trees import Tree

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEV_BYTES = 1024 * 1024
SHM_BYTES = 16 * 1024 * 1024
TTY_GROUP = 5
"""Debian's group `tty`, which owns terminals, see pts(4)."""

Tmpfs = tuple[str, int, int]
"""A mount point, the size in bytes, and the mode of its root."""

_STATVFS_TO_MS = (
    (os.ST_NOSUID, MS_NOSUID),
    (os.ST_NODEV, MS_NODEV),
    (os.ST_NOEXEC, MS_NOEXEC),
    (os.ST_NOATIME, 1024),
    (os.ST_NODIRATIME, 2048),
    (os.ST_RELATIME, 1 << 21),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The mounts of a root filesystem besides the image itself.

    Attributes:
        tmpfs: tmpfs mounts.
        skeleton: directory outside with the empty targets of `trees` that the image lacks; it is overlaid on the
            image. None if the image has them all, which is the common case and needs no overlay.
        trees: mounts of the host's files.
    """

    tmpfs: tuple[Tmpfs, ...] = ()
    skeleton: str | None = None
    trees: tuple[Tree, ...] = ()


def enter(source: int, skeleton: int | None, layout: Layout) -> None:
    """Make the root at descriptor `source` the root of this mount namespace, and leave the old one.

    Args:
        source: O_PATH descriptor of the root filesystem's directory.
        skeleton: O_PATH descriptor of the layout's skeleton, opened by the caller, who may traverse every directory.
        layout: the other mounts.

    Raises:
        OSError
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = f"/proc/self/fd/{source}"
    target = os.readlink(root)
    _assemble(root, None if skeleton is None else f"/proc/self/fd/{skeleton}", target, layout)
    os.chdir(target)
    pivot_root(".", ".")
    umount(".", MNT_DETACH)
    os.chdir("/")
    _mask()


def assemble(source: str, target: str, layout: Layout) -> None:
    """Mount a root filesystem read-only at `target`, with its tmpfs, /dev, /proc and /sys.

    Unmounting `target` with MNT_DETACH removes all of them.

    Raises:
        OSError
    """
    if layout.skeleton is None:
        _assemble(source, None, target, layout)
        return
    # By descriptors, because colons and commas in a path have a meaning in overlay's options.
    with _opened(source) as below, _opened(layout.skeleton) as above:
        _assemble(f"/proc/self/fd/{below}", f"/proc/self/fd/{above}", target, layout)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _assemble(source: str, skeleton: str | None, target: str, layout: Layout) -> None:
    if skeleton is None:
        mount(source, target, None, MS_BIND | MS_REC)
        mount("none", target, None, MS_REC | MS_PRIVATE)
        _remount(target, MS_RDONLY | MS_NOSUID | MS_NODEV)
    else:
        # Lower layers only: nothing can be written (Documentation/filesystems/overlayfs.rst).
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("overlay", target, "overlay", flags, f"lowerdir={skeleton}:{source}")
        mount("none", target, None, MS_PRIVATE)
    for directory, size, mode in layout.tmpfs:
        mount("tmpfs", target + directory, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode={mode:o}")
    _devices(f"{target}/dev")
    mount("proc", f"{target}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", f"{target}/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    trees.attach(layout.trees, target)


def _remount(path: str, flags: int) -> None:
    # Flags set in a more privileged namespace are locked, so they have to be given again
    # (mount_namespaces(7), "restrictions").
    have = os.statvfs(path).f_flag
    for seen, flag in _STATVFS_TO_MS:
        if have & seen:
            flags |= flag
    mount("none", path, None, MS_REMOUNT | MS_BIND | flags)


def _devices(dev: str) -> None:
    """Make a private /dev with bind mounts of harmless device nodes: a user namespace may not create nodes."""
    mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, f"size={DEV_BYTES},mode=755")
    for name in DEVICES:
        path = f"{dev}/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        mount(f"/dev/{name}", path, None, MS_BIND)
        _remount(path, MS_NOSUID | MS_NOEXEC)
    for name, link in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(link, f"{dev}/{name}")
    os.mkdir(f"{dev}/shm", 0o1777)
    mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={SHM_BYTES},mode=1777")
    os.mkdir(f"{dev}/pts", 0o755)
    options = f"newinstance,ptmxmode=0666,mode=0620,gid={TTY_GROUP}"
    mount("devpts", f"{dev}/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    _remount(dev, MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def _mask() -> None:
    for path in MASKED:
        with suppress(FileNotFoundError):
            if os.path.isdir(path):
                mount("tmpfs", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0,mode=000")
            else:
                mount("/dev/null", path, None, MS_BIND)
    for path in READ_ONLY:
        with suppress(FileNotFoundError):
            mount(path, path, None, MS_BIND | MS_REC)
            _remount(path, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
