"""Parse and check bind mounts, given as `-v HOST:CTR[:ro]`.

Refused are sources that would break the isolation (kernel file systems, sockets of daemons, sandbox's own state),
targets that every sandbox needs itself (/tmp, /run, /dev), and paths that contain a symbolic link.

These checks catch mistakes; they do not stop an attacker who swaps a source between the check and the mount. Drivers
do: they open the path without following links (openat2(2), RESOLVE_NO_SYMLINKS) and mount what they opened, or compare
it with what an engine has mounted.
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
"""Kernel interfaces, sockets of daemons (docker.sock gives root on the host), and the engines' own data."""
KERNEL_FILE_SYSTEMS = (
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs", "fusectl",
    "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
)  # fmt: skip
"""File systems that give access to the kernel, wherever they are mounted (filesystems(5), /proc/filesystems)."""
RESERVED_TARGETS = ("/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/var/run", APP_DIR)  # noqa: S108 - inside


def parse_all(texts: Iterable[str], what: str = "-v") -> tuple[Mount, ...]:
    """Parse all mounts of a sandbox; return them sorted by target.

    Raises:
        SpecError: as for `parse_one`, or a target is the same as another or inside it.
    """
    found: list[Mount] = []
    for text in texts:
        one = parse_one(text, what)
        for other in found:
            if _within(one.target, other.target) or _within(other.target, one.target):
                raise SpecError(
                    f"{what} {parse.one_line(text)}: {one.target} and {other.target} overlap",
                    "give each mount a target of its own",
                )
        found.append(one)
    return tuple(sorted(found, key=lambda mount: mount.target))


def parse_one(text: str, what: str = "-v") -> Mount:
    """Parse one mount: HOST:CTR, HOST:CTR:ro or HOST:CTR:rw.

    Raises:
        SpecError: it has another form, the source does not exist or is not allowed, or the target is not allowed.
    """
    parts = text.split(":")
    mode = parts[2] if len(parts) == 3 else "rw"
    if len(parts) not in (2, 3) or not all(parts) or mode not in ("ro", "rw"):
        raise SpecError(f"{what} {parse.one_line(text)} is not HOST:CTR[:ro]", f"such as {what} ./data:/data:ro")
    return Mount(source(parts[0], what), target(parts[1], what), mode == "ro")


def target(text: str, what: str = "-v") -> str:
    """Check the target of a mount; return it normalised.

    Raises:
        SpecError
    """
    place = parse.inside_path(text, f"{what}: the target")
    if place == "/":
        raise SpecError(f"{what}: nothing can be mounted over the sandbox's root", "choose a directory such as /data")
    for reserved in RESERVED_TARGETS:
        if _within(place, reserved):
            raise SpecError(
                f"{what}: nothing can be mounted at {place}: {reserved} is reserved", "choose a target such as /data"
            )
    return place


def source(text: str, what: str = "-v") -> str:
    """Check the source of a mount, a directory or file of the host; return its absolute path.

    Raises:
        SpecError
    """
    shown = parse.one_line(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{what} {shown} is not UTF-8", "rename it") from None
    if not text.isprintable():
        raise SpecError(f"{what} {shown} contains a character that is not printable", "rename it")
    if ".." in text.split("/"):
        raise SpecError(f"{what} {shown} contains '..'", "write the path without it")
    path = "/" + os.path.abspath(text).lstrip("/")  # POSIX lets two slashes at the beginning stand
    try:
        real, mode = os.path.realpath(path, strict=True), os.lstat(path).st_mode
    except OSError as error:
        raise SpecError(
            f"{what} {shown}: {path}: {error.strerror or error}", "give a directory or file of this host"
        ) from None
    if real != path or stat.S_ISLNK(mode):
        raise SpecError(f"{what} {shown} contains a symbolic link", f"if you mean its target, write {real}")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise SpecError(f"{what} {shown} is neither a directory nor a regular file", "give one of these")
    _refuse_forbidden(path, what)
    return path


def _refuse_forbidden(path: str, what: str) -> None:
    if path == "/":
        raise SpecError(f"{what}: the host's root cannot be mounted", "give the directory that is needed")
    state = os.path.realpath(paths.state_dir())
    for kept in dict.fromkeys((*HOST_ITSELF, *map(os.path.realpath, HOST_ITSELF), state)):
        if _within(path, kept) or _within(kept, path):
            relation = "is" if path == kept else f"is in {kept}," if _within(path, kept) else f"contains {kept},"
            reason = "sandbox's own state" if kept == state else "part of the host itself"
            raise SpecError(f"{what}: {path} cannot be mounted: it {relation} {reason}", "give a directory of data")
    for mount in procfs.own_mounts():
        place = mount.target
        if mount.type in KERNEL_FILE_SYSTEMS and (_within(path, place) or _within(place, path)):
            raise SpecError(
                f"{what}: {path} cannot be mounted: {mount.type} is mounted at {place}", "give a directory of data"
            )


def _within(path: str, directory: str) -> bool:
    """Return whether a normalised path is a directory or below it."""
    return PurePosixPath(path).is_relative_to(directory)
