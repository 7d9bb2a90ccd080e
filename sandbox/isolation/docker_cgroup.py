"""The control group that an engine on this host made for a container: limits and usage straight from the kernel."""

from __future__ import annotations

from pathlib import Path

from sandbox.kernel.cgroup import Group, Hierarchy, hierarchy


class ContainerGroup(Group):
    """The group of a container, wherever the engine put it. Only read from: it is the engine's."""

    def __init__(self, container: str, places: dict[str, str], where: Hierarchy) -> None:
        super().__init__(container, where=where)
        self._places = places

    def _directory(self, controller: str) -> Path | None:
        if controller in self.where.v1:
            return self.where.v1[controller] / self._places[controller].lstrip("/")
        if self.where.v2 is not None and controller in self.where.v2_controllers:
            return self.where.v2 / self._places[""].lstrip("/")
        return None


def parse_places(text: str) -> dict[str, str]:
    """Controller to path, from /proc/pid/cgroup (cgroups(7)); the key of the unified tree is ""."""
    places: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            places[controller] = path
    return places


def find(container: str, pid: int) -> ContainerGroup | None:
    """The group of a running container.

    Args:
        container: the engine's full id of it.
        pid: of its init, as the engine says it.

    Returns:
        None when that process is not here, or not the container's: the engine runs on another host, say.
    """
    try:
        places = parse_places(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    # Both cgroup drivers of Docker put the id into the path: /docker/ID, or system.slice/docker-ID.scope.
    if not any(container in path for path in places.values()):
        return None
    return ContainerGroup(container, places, hierarchy())
