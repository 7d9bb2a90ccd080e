"""What a container sees of the host's files: bind mounts as the engine is asked for, and a check of what it did."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from sandbox.errors import EngineError, SpecError
from sandbox.record import Record
from sandbox.spec import APP_DIR, Mount, SandboxSpec

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def mounts(spec: SandboxSpec, record: Record) -> tuple[Mount, ...]:
    """Everything to be mounted, the application's files too."""
    application = (Mount(str(record.app_path), APP_DIR, read_only=True),) if spec.app else ()
    return (*spec.mounts, *application)


def bodies(spec: SandboxSpec, record: Record) -> list[dict[str, Any]]:
    """The mounts in the terms of the create call.

    Only what is mounted at the source itself is shown, nothing that is mounted below it: read-only holds for one mount,
    and what lies below would stay writable (mount_setattr(2), AT_RECURSIVE, which this engine does not use).

    Raises:
        SpecError: a source is not there, or a symbolic link is on its path.
    """
    found = []
    for mount in mounts(spec, record):
        identity(mount.source)
        found.append(
            {
                "Type": "bind",
                "Source": mount.source,
                "Target": mount.target,
                "ReadOnly": mount.read_only,
                "BindOptions": {"Propagation": "private", "NonRecursive": True},
            }
        )
    return found


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


def verify(spec: SandboxSpec, record: Record, pid: int) -> None:
    """Compare what is mounted inside with what the host has at the sources.

    The engine takes a path and follows links; a component that somebody replaced by one between our look and the
    engine's shows here.

    Args:
        spec: of the sandbox.
        record: of the sandbox.
        pid: of the container's init, on this host.

    Raises:
        EngineError: something else is mounted than what was asked for.
    """
    for mount in mounts(spec, record):
        try:
            same = _walk(f"/proc/{pid}/root{mount.target}", links=3) == identity(mount.source)
        except OSError as error:
            raise EngineError(f"what is mounted at {mount.target} cannot be seen: {error.strerror or error}") from error
        if not same:
            raise EngineError(
                f"at {mount.target} something else is mounted than {mount.source}: a path was changed meanwhile"
            )


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
