"""Limits and usage of a container, read from the kernel and compared with the engine's description."""

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
"""Docker counts CPUs in units of 10^-9."""
LINK = "eth0"
"""Docker's name of a container's first interface."""
_WRITABLE = "/tmp"  # noqa: S108 - a path inside a sandbox


def said(found: dict[str, Any]) -> Limits:
    """Return the limits in the engine's description of a container."""
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
    """Return the limits that the kernel enforces, after comparing them with the engine's description.

    Args:
        found: the engine's description of the container.
        group: its control group, if it can be seen.
        pid: of its init on this host; None if its files cannot be seen.

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
            raise LimitError(f"dockerd reports the limit {what} as {theirs}, but the kernel enforces {ours}")
    return read


def disk_size(path: str) -> int:
    """Return the size of a file system in bytes, see statvfs(3).

    Raises:
        OSError
    """
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def usage(group: ContainerGroup, pid: int) -> Stats:
    """Return the usage from the kernel's accounting."""
    return Stats(*group.usage(), *procfs.traffic(pid, LINK), *group.transferred())
