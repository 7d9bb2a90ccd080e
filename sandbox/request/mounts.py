"""Bind mounts, as `-v HOST:CTR[:ro]` asks for them: what of the host may be seen inside, and where.

What is refused would undo the wall (the kernel's own file systems, sockets of daemons, our state), hide what every
sandbox needs (/tmp, /run, /dev), or not be what it looks like (a path through a symbolic link).

The check is for the person who types. A source that is swapped between it and the mount is the drivers' business: they
open the path without following any link (openat2(2), RESOLVE_NO_SYMLINKS) and mount what they opened, or compare what
an engine has mounted with it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import PurePosixPath

from sandbox.errors import SpecError
from sandbox.kernel import procfs
from sandbox.request import parse
from sandbox.spec import APP_DIR, Mount
from sandbox.state import paths

HOST_ITSELF = ("/proc", "/sys", "/dev", "/run", "/var/run", "/var/lib/docker", "/var/lib/libvirt")
"""The kernel, the sockets of daemons (docker.sock is root on the host), and what the engines keep."""
KERNEL_FILE_SYSTEMS = (
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl",
    "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
)  # fmt: skip
"""File systems that are doors to the kernel, wherever they are mounted (filesystems(5), /proc/filesystems)."""
RESERVED_TARGETS = ("/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/var/run", APP_DIR)  # noqa: S108 - inside


def parse_all(texts: Iterable[str], what: str = "-v") -> tuple[Mount, ...]:
    """All mounts of a sandbox, sorted by their place inside.

    Raises:
        SpecError: as of `parse_one`, or two have one place, or one is inside another.
    """
    found: list[Mount] = []
    for text in texts:
        one = parse_one(text, what)
        for other in found:
            if _within(one.target, other.target) or _within(other.target, one.target):
                raise SpecError(
                    f"{what} {parse.one_line(text)}: {one.target} and {other.target} lie in each other",
                    "a place of its own for each",
                )
        found.append(one)
    return tuple(sorted(found, key=lambda mount: mount.target))


def parse_one(text: str, what: str = "-v") -> Mount:
    """One mount: HOST:CTR, HOST:CTR:ro or HOST:CTR:rw.

    Raises:
        SpecError: another form, a source that is not there or may not be shown, or a place that may not be covered.
    """
    parts = text.split(":")
    mode = parts[2] if len(parts) == 3 else "rw"
    if len(parts) not in (2, 3) or not all(parts) or mode not in ("ro", "rw"):
        raise SpecError(f"{what} {parse.one_line(text)} is not HOST:CTR[:ro]", f"such as {what} ./data:/data:ro")
    return Mount(source(parts[0], what), target(parts[1], what), mode == "ro")


def target(text: str, what: str = "-v") -> str:
    """A place inside that may be covered.

    Raises:
        SpecError
    """
    place = parse.inside_path(text, f"{what}: the place inside")
    if place == "/":
        raise SpecError(f"{what}: nothing can be mounted over the sandbox's root", "a place such as /data")
    for reserved in RESERVED_TARGETS:
        if _within(place, reserved):
            raise SpecError(
                f"{what}: nothing can be mounted at {place}: {reserved} is the sandbox's own", "a place such as /data"
            )
    return place


def source(text: str, what: str = "-v") -> str:
    """A directory or file of the host that may be shown, as an absolute path without links.

    Raises:
        SpecError
    """
    shown = parse.one_line(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{what} {shown} is not UTF-8", "text") from None
    if not text.isprintable():
        raise SpecError(f"{what} {shown} has a character that cannot be printed", "a plain path")
    if ".." in text.split("/"):
        raise SpecError(f"{what} {shown} has '..' in it", "the path that is meant, written out")
    path = "/" + os.path.abspath(text).lstrip("/")  # POSIX lets two slashes at the beginning stand
    try:
        real, mode = os.path.realpath(path, strict=True), os.lstat(path).st_mode
    except OSError as error:
        raise SpecError(
            f"{what} {shown}: {path}: {error.strerror or error}", "a directory or file of this host"
        ) from None
    if real != path or stat.S_ISLNK(mode):
        raise SpecError(f"{what} {shown} goes through a symbolic link", f"it leads to {real}; if that is meant, say so")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise SpecError(f"{what} {shown} is neither a directory nor a regular file", "no sockets, devices or pipes")
    _refuse_forbidden(path, what)
    return path


def _refuse_forbidden(path: str, what: str) -> None:
    if path == "/":
        raise SpecError(f"{what}: the host's root cannot be shown inside", "the directory that is needed")
    state = os.path.realpath(paths.state_dir())
    for kept in dict.fromkeys((*HOST_ITSELF, *map(os.path.realpath, HOST_ITSELF), state)):
        if _within(path, kept) or _within(kept, path):
            relation = "is" if path == kept else f"lies in {kept}," if _within(path, kept) else f"contains {kept},"
            reason = "sandbox's own state" if kept == state else "part of the host itself"
            raise SpecError(f"{what}: {path} cannot be shown inside: it {relation} {reason}", "a directory of data")
    for mount in procfs.own_mounts():
        place = mount.target
        if mount.type in KERNEL_FILE_SYSTEMS and (_within(path, place) or _within(place, path)):
            raise SpecError(
                f"{what}: {path} cannot be shown inside: {mount.type} is mounted at {place}", "a directory of data"
            )


def _within(path: str, directory: str) -> bool:
    """Whether a normalised path is a directory or lies in it."""
    return PurePosixPath(path).is_relative_to(directory)
