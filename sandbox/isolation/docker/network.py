"""The lab network as a Docker network: an internal one on the bridge that `sandbox.network.lab` creates."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from sandbox.errors import EngineError
from sandbox.host.docker import Engine, RefusalError
from sandbox.kernel import ifconfig, syscalls
from sandbox.network import lab as network
from sandbox.state.store import named_lock

_BRIDGE_OPTION = "com.docker.network.bridge.name"


@dataclass(frozen=True, slots=True)
class Lab:
    """Settings of the network; the defaults are those of `sandbox.network.lab`."""

    name: str = network.DOCKER_NETWORK
    bridge: str = network.BRIDGE
    subnet: str = network.SUBNET
    dynamic_range: str = network.DOCKER_RANGE
    gateway: str = network.HOST_ADDRESS

    def body(self) -> dict[str, Any]:
        """Return the arguments for the SDK's create_network."""
        pool = {"Subnet": self.subnet, "IPRange": self.dynamic_range, "Gateway": self.gateway}
        return {
            "name": self.name,
            "driver": "bridge",
            "internal": True,
            "check_duplicate": True,
            "ipam": {"Driver": "default", "Config": [pool]},
            "options": {_BRIDGE_OPTION: self.bridge, "com.docker.network.bridge.enable_ip_masquerade": "false"},
            "labels": {"org.sandbox.lab": "1"},
        }

    def difference(self, found: dict[str, Any]) -> str | None:
        """Describe the first setting of a network (from inspect) that differs from these; None if all are equal."""
        pools = found["IPAM"].get("Config") or [{}]
        for what, is_, should in (
            ("driver", found["Driver"], "bridge"),
            ("internal", found["Internal"], True),
            ("bridge", (found.get("Options") or {}).get(_BRIDGE_OPTION), self.bridge),
            ("subnet", pools[0].get("Subnet"), self.subnet),
            ("ip-range", pools[0].get("IPRange"), self.dynamic_range),
            ("gateway", pools[0].get("Gateway"), self.gateway),
        ):
            if is_ != should:
                return f"its {what} is {is_}, not {should}"
        return None


def ensure(engine: Engine, lab: Lab) -> None:
    """Create the network if it is missing; two commands may do so at the same time.

    Raises:
        EngineError: a network of that name has other settings, or the engine refuses.
    """
    if _there(engine, lab):
        return
    with named_lock("docker-network"):
        if _there(engine, lab):
            return
        try:
            with engine.talking(f"the Docker network {lab.name} could not be made") as api:
                api.create_network(**lab.body())
        except RefusalError:
            # The lock covers this state directory only; the engine may have other users.
            if not _there(engine, lab):
                raise


def exists(engine: Engine, lab: Lab) -> bool:
    """Return whether the engine has a network of that name.

    Raises:
        EngineError
    """
    return _look(engine, lab) is not None


def _look(engine: Engine, lab: Lab) -> dict[str, Any] | None:
    return engine.look(f"/networks/{lab.name}", f"the Docker network {lab.name} cannot be inspected")


def _there(engine: Engine, lab: Lab) -> bool:
    found = _look(engine, lab)
    if found is None:
        return False
    different = lab.difference(found)
    if different is not None:
        raise EngineError(
            f"the Docker network {lab.name} is not ours: {different}", f"run `docker network rm {lab.name}` first"
        )
    return True


def remove(engine: Engine, lab: Lab) -> list[str]:
    """Remove the network unless a container is connected to it. Idempotent.

    Returns:
        One line per resource removed.

    Raises:
        EngineError
    """
    try:
        with engine.talking(f"the Docker network {lab.name} could not be removed") as api:
            found = api.inspect_network(lab.name)
            if found.get("Containers"):
                return []
            api.remove_network(lab.name)
    except RefusalError as error:
        if error.status == 404:
            return []
        raise
    return [f"docker network {lab.name}"]


def remove_default_route(pid: int) -> None:
    """Remove the default route from a container's network namespace.

    dockerd 20.10 adds one on every network, internal or not, and has no option against it. The rules of
    `sandbox.network.lab` block its traffic; without the route it cannot even be tried.

    Args:
        pid: of a process in the namespace, on this host; nothing is done if it has ended.

    Raises:
        EngineError
    """
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(back)
        return
    try:
        if os.path.samestat(os.fstat(back), os.fstat(there)):
            raise EngineError("the container has the host's network")
        syscalls.setns(there, syscalls.CLONE_NEWNET)
        try:
            ifconfig.delete_default_route()
        finally:
            syscalls.setns(back, syscalls.CLONE_NEWNET)
    except OSError as error:
        raise EngineError(f"the default route could not be removed: {error.strerror or error}") from error
    finally:
        os.close(there)
        os.close(back)
