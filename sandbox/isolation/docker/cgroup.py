"""The control group that the engine created for a container; limits and usage are read from it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import cache
from pathlib import Path

from sandbox.kernel import procfs
from sandbox.kernel.cgroup import Group, Hierarchy, hierarchy


class ContainerGroup(Group):
    """The control group of a container. It belongs to the engine and is only read from."""

    def __init__(self, container: str, places: dict[str, str], where: Hierarchy) -> None:
        super().__init__(container, where=where)
        self._places = places

    def _directory(self, controller: str) -> Path | None:
        if controller in self.where.v1:
            return self.where.v1[controller] / self._places[controller].lstrip("/")
        if self.where.v2 is not None and controller in self.where.v2_controllers:
            return self.where.v2 / self._places[""].lstrip("/")
        return None

    def is_frozen(self) -> bool | None:
        """Return whether its processes are frozen: cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst, cgroup.freeze.

        None if this host has no freezer.
        """
        with suppress(OSError, KeyError):
            if "freezer" in self.where.v1:
                return self._file("freezer", "freezer.state", "").read_text(encoding="ascii").strip() != "THAWED"
            if self.where.v2 is not None:
                freeze = self.where.v2 / self._places[""].lstrip("/") / "cgroup.freeze"
                return freeze.read_text(encoding="ascii").strip() == "1"
        return None

    def transferred(self) -> tuple[int | None, int | None]:
        """Return the bytes read from and written to block devices; None without accounting on this host."""
        with suppress(OSError, KeyError, ValueError):
            if "blkio" in self._places:
                root = _blkio_root()
                if root is None:
                    return None, None
                # The throttling policy's counters work with every I/O scheduler: cgroup-v1/blkio-controller.rst.
                path = root / self._places["blkio"].lstrip("/") / "blkio.throttle.io_service_bytes_recursive"
                fields = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
                moved = [(words[1], int(words[2])) for words in fields if len(words) == 3]
                return _sum(moved, "Read"), _sum(moved, "Write")
            if self.where.v2 is not None and "io" in self.where.v2_controllers:
                text = (self.where.v2 / self._places[""].lstrip("/") / "io.stat").read_text(encoding="ascii")
                pairs = [word.partition("=") for word in text.split() if "=" in word]
                moved = [(name, int(value)) for name, _, value in pairs]
                return _sum(moved, "rbytes"), _sum(moved, "wbytes")
        return None, None


def _sum(moved: list[tuple[str, int]], kind: str) -> int:
    return sum(value for name, value in moved if name == kind)


@cache
def _blkio_root() -> Path | None:
    mounts = (mount for mount in procfs.own_mounts() if mount.type == "cgroup" and "blkio" in mount.options)
    return next((Path(mount.target) for mount in mounts), None)


def find(container: str, pid: int) -> ContainerGroup | None:
    """Return the control group of a running container.

    Args:
        container: its full id.
        pid: of its init, as the engine reports it.

    Returns:
        None if that process does not exist or does not belong to the container.
    """
    try:
        places = procfs.groups(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    # Both of Docker's cgroup drivers put the id into the path: /docker/ID, or system.slice/docker-ID.scope.
    if not any(container in path for path in places.values()):
        return None
    return ContainerGroup(container, places, hierarchy())


def kill_session(container: str, leader: int) -> bool:
    """Send SIGKILL to every process of a session (setsid(2)) in a container's control group.

    Args:
        container: its full id.
        leader: pid of the session's leader on this host, which is alive.

    Returns:
        True if any process was alive.
    """
    group = find(container, leader)
    if group is None:
        return False
    found = False
    for pid in group.pids():
        with suppress(OSError):
            stat = procfs.stat(Path(f"/proc/{pid}/stat").read_bytes())
            if stat.session == leader and stat.state != "Z":
                os.kill(pid, signal.SIGKILL)
                found = True
    return found
