"""Limits and usage of a container, from the kernel and compared with what the engine says."""

from __future__ import annotations

import math
import os
from typing import Any

from sandbox.errors import EngineError, LimitError
from sandbox.isolation.base import Stats
from sandbox.isolation.docker.cgroup import ContainerGroup
from sandbox.kernel import procfs
from sandbox.spec import Limits

NANO = 1_000_000_000
"""Docker counts CPUs and CPU time in billionths."""
LINK = "eth0"
"""Docker's name of a container's first interface."""
_WRITABLE = "/tmp"  # noqa: S108 - a path inside a sandbox


def said(found: dict[str, Any]) -> Limits:
    """Limits as the engine has them, from its description of a container."""
    config = found["HostConfig"]
    options = ((config.get("Tmpfs") or {}).get(_WRITABLE) or "").split(",")
    sizes = [option.removeprefix("size=") for option in options if option.startswith("size=")]
    return Limits(
        config["NanoCpus"] / NANO or None,
        config["Memory"] or None,
        config["PidsLimit"] or None,
        "docker inspect",
        int(sizes[0]) if sizes and sizes[0].isdigit() else None,
    )


def in_force(found: dict[str, Any], group: ContainerGroup | None, pid: int | None) -> Limits:
    """Limits as the kernel has them, compared with what the engine says.

    Args:
        found: the engine's description of the container.
        group: its control group, where it can be seen.
        pid: of its init on this host; None where its files cannot be seen.

    Raises:
        LimitError: the two differ.
        EngineError: they cannot be read.
    """
    engines = said(found)
    if group is None:
        return engines
    try:
        disk = None if pid is None else disk_size(f"/proc/{pid}/root{_WRITABLE}")
        read = Limits(*group.read_limits(), f"docker inspect, cgroup {group.where.mode}", disk or engines.disk)
    except OSError as error:
        raise EngineError(f"the limits cannot be read: {error}") from error
    for what in ("cpus", "memory", "pids", "disk"):
        ours, theirs = getattr(read, what), getattr(engines, what)
        # Quotas are whole microseconds per period, memory whole pages.
        if (ours is None) != (theirs is None) or not math.isclose(ours or 0, theirs or 0, rel_tol=0.01):
            raise LimitError(f"the limit {what} is {theirs} to dockerd, but {ours} in the kernel")
    return read


def disk_size(path: str) -> int:
    """Bytes that a file system holds in all, see statvfs(3).

    Raises:
        OSError
    """
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def usage(group: ContainerGroup, pid: int) -> Stats:
    """Usage as the kernel accounts it."""
    return Stats(*group.usage(), *procfs.traffic(pid, LINK), *group.transferred())
