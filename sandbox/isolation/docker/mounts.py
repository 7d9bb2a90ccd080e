"""Bind mounts of a container: what the engine is asked for, and a check of what it did."""

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
    """Nothing on this host shows what is mounted inside."""


def mounts(spec: SandboxSpec, record: Record) -> tuple[Mount, ...]:
    """Everything to be mounted, the application's files too."""
    application = (Mount(str(record.app_path), APP_DIR, read_only=True),) if spec.app else ()
    return (*spec.mounts, *application)


def bodies(spec: SandboxSpec, record: Record) -> list[dict[str, Any]]:
    """The mounts in the terms of the create call.

    Only what is mounted at the source itself is shown, nothing that is mounted below it: read-only holds for one mount,
    and what lies below would stay writable (mount_setattr(2), AT_RECURSIVE, which this engine does not use).
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
    """Source to device and inode, for everything to be mounted.

    Raises:
        SpecError: a source is not there, or a symbolic link is on its path.
    """
    return {mount.source: identity(mount.source) for mount in mounts(spec, record)}


def identity(path: str) -> tuple[int, int]:
    """Device and inode of a file, reached without following any symbolic link.

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
    """Compare what is mounted inside with what the host had at the sources when the engine was asked.

    The engine takes a path and follows links; a component that somebody replaced by one between our look and the
    engine's shows here.

    Args:
        spec: of the sandbox.
        record: of the sandbox.
        noted: as of `identities`, from before the create call.
        pid: of the container's init, on this host.

    Raises:
        UnseenError: the container cannot be looked into; it is over, perhaps.
        EngineError: something else is mounted than what was asked for.
    """
    for mount in mounts(spec, record):
        try:
            found = _walk(f"/proc/{pid}/root{mount.target}", links=3)
        except OSError as error:
            raise UnseenError(f"what is mounted at {mount.target} cannot be seen: {error.strerror or error}") from error
        if found != noted[mount.source]:
            raise EngineError(
                f"at {mount.target} something else is mounted than {mount.source}: a path was changed meanwhile"
            )


def verify_sources(noted: Mapping[str, tuple[int, int]]) -> None:
    """Check a container that ended before anybody could look into it: was a source replaced?

    Raises:
        EngineError: one was.
    """
    for source, before in noted.items():
        try:
            same = _walk(source) == before
        except OSError:
            same = False
        if not same:
            raise EngineError(f"{source} was replaced while it was mounted; what the command saw is not known")


def _walk(path: str, links: int = 0) -> tuple[int, int]:
    """Device and inode at a path whose components are no links, but for the first few (/proc/pid/root is one)."""
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
