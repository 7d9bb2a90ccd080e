"""Bind mounts of a container: the request to the engine, and a check of what it mounted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any

from sandbox.errors import EngineError, SpecError
from sandbox.spec import APP_DIR, Mount, SandboxSpec
from sandbox.state.record import Record

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UnseenError(EngineError):
    """The mounts inside cannot be seen from this host."""


def mounts(spec: SandboxSpec, record: Record) -> tuple[Mount, ...]:
    """Return all mounts, including that of the application's files."""
    application = (Mount(str(record.app_path), APP_DIR, read_only=True),) if spec.app else ()
    return (*spec.mounts, *application)


def bodies(spec: SandboxSpec, record: Record) -> list[dict[str, Any]]:
    """Return the mounts as the create call expects them.

    They are not recursive: read-only applies to one mount only, so mounts below the source would stay writable
    (mount_setattr(2), AT_RECURSIVE, which this engine does not use).
    """
    return [
        {
            "Type": "bind",
            "Source": mount.source,
            "Target": mount.target,
            "ReadOnly": mount.read_only,
            "BindOptions": {"Propagation": "private", "NonRecursive": True},
        }
        for mount in mounts(spec, record)
    ]


def identities(spec: SandboxSpec, record: Record) -> dict[str, tuple[int, int]]:
    """Return a mapping from source to device and inode, for all mounts.

    Raises:
        SpecError: a source does not exist, or its path contains a symbolic link.
    """
    return {mount.source: identity(mount.source) for mount in mounts(spec, record)}


def identity(path: str) -> tuple[int, int]:
    """Return device and inode of a file, without following any symbolic link.

    Raises:
        SpecError
    """
    try:
        return _walk(path)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be mounted: {error.strerror or error}",
            "a directory or file of this host, by a path without symbolic links",
        ) from error


def verify(spec: SandboxSpec, record: Record, noted: Mapping[str, tuple[int, int]], pid: int) -> None:
    """Check that the files mounted inside are those that were at the sources before the create call.

    The engine follows symbolic links, so a component of the path could have been replaced by one after our check.

    Args:
        spec: of the sandbox.
        record: of the sandbox.
        noted: the result of `identities` before the create call.
        pid: of the container's init, on this host.

    Raises:
        UnseenError: the mounts cannot be seen; the container may have ended.
        EngineError: another file is mounted than the one asked for.
    """
    for mount in mounts(spec, record):
        try:
            found = _walk(f"/proc/{pid}/root{mount.target}", links=3)
        except OSError as error:
            raise UnseenError(f"what is mounted at {mount.target} cannot be seen: {error.strerror or error}") from error
        if found != noted[mount.source]:
            raise EngineError(
                f"{mount.target} is not {mount.source}: its path was changed while the container was created"
            )


def verify_sources(noted: Mapping[str, tuple[int, int]]) -> None:
    """Check the sources of a container that ended before `verify` could see its mounts.

    Raises:
        EngineError: a source was replaced.
    """
    for source, before in noted.items():
        try:
            same = _walk(source) == before
        except OSError:
            same = False
        if not same:
            raise EngineError(f"{source} was replaced while it was mounted; the command may have seen other files")


def _walk(path: str, links: int = 0) -> tuple[int, int]:
    """Return device and inode of a path. Only its first `links` components may be symbolic links (/proc/pid/root)."""
    parts = [part for part in path.split("/") if part]
    directory = os.open("/" + "/".join(parts[:links]), os.O_PATH | os.O_CLOEXEC)
    try:
        for part in parts[links:]:
            below = os.open(part, _FLAGS, dir_fd=directory)
            os.close(directory)
            directory = below
            if stat.S_ISLNK(os.fstat(directory).st_mode):  # O_PATH opens the link itself (open(2))
                raise OSError(errno.ELOOP, f"{part} is a symbolic link")
        found = os.fstat(directory)
        return found.st_dev, found.st_ino
    finally:
        os.close(directory)
