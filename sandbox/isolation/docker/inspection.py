"""Inspection of a container: its settings in force in the kernel, and as dockerd describes them.

Sources: the Docker Engine API, "Inspect a container".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sandbox.isolation import inspection
from sandbox.isolation.docker import seccomp
from sandbox.isolation.in_force import Engine, EngineMount, Inspection
from sandbox.isolation.inspection import View
from sandbox.kernel.cgroup import Group
from sandbox.spec import Limits
from sandbox.state.record import Record

_SECCOMP_OPTION = "seccomp="


@inspection.readable()
def inspect(
    record: Record, found: Mapping[str, Any], workload: View, pid: int | None, group: Group | None, limits: Limits
) -> Inspection:
    """Return the complete inspection.

    Args:
        record: of the sandbox.
        found: the engine's description of the container.
        workload: its init, as seen through the kernel that serves it.
        pid: of the init, or of gVisor's kernel, on this host; None if it does not run.
        group: its control group, if it can be seen.
        limits: as read back from the kernel.
    """
    state = found["State"]
    kills = group.events().get("oom_kill", 0) if group is not None else 0
    return inspection.inspection(
        workload,
        pid,
        inspection.limits_in_force(limits, workload, group=group),
        inspection.network_of(inspection.host_view(pid), record.address, own=inspection.own_network(pid)),
        inspection.outcome(
            record,
            ended=state["Status"] in ("exited", "dead"),
            code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]) or kills > 0,
            time=_seconds(state["FinishedAt"]),
            reason=state.get("Error") or None,
        ),
        engine=_engine(found),
    )


def _seconds(text: str) -> float | None:
    """Convert a time from dockerd to seconds since the epoch; None for the year 1, which stands for never."""
    found = datetime.fromisoformat(text)
    return found.timestamp() if found.year > 1 else None


def _engine(found: Mapping[str, Any]) -> Engine:
    """Return the settings as dockerd describes them, not as they were requested."""
    config, networks = found["HostConfig"], found["NetworkSettings"]
    options = config.get("SecurityOpt") or []
    profiles = [one.removeprefix(_SECCOMP_OPTION) for one in options if one.startswith(_SECCOMP_OPTION)]
    ports = [
        f"{one['HostIp']}:{one['HostPort']}->{inside}"
        for inside, places in (networks.get("Ports") or {}).items()
        for one in places or ()
    ]
    log = config.get("LogConfig") or {}
    return Engine(
        runtime=config.get("Runtime"),
        user=found["Config"].get("User"),
        privileged=config.get("Privileged"),
        capabilities_dropped=config.get("CapDrop"),
        capabilities_added=config.get("CapAdd"),
        security_options=[one for one in options if not one.startswith(_SECCOMP_OPTION)],
        seccomp_profile=_profile(profiles[0]) if profiles else "engine's default",
        root_read_only=config.get("ReadonlyRootfs"),
        tmpfs=config.get("Tmpfs"),
        swap=max(0, config["MemorySwap"] - config["Memory"]) if config.get("MemorySwap") else None,
        mounts=[
            EngineMount(one["Type"], one.get("Source"), one["Destination"], not one["RW"], one.get("Propagation"))
            for one in found.get("Mounts") or ()
            if one["Type"] != "tmpfs"
        ],
        devices=config.get("Devices") or [],
        restart_policy=(config.get("RestartPolicy") or {}).get("Name"),
        log_driver=log.get("Type"),
        log_options=log.get("Config"),
        network=next(iter(networks.get("Networks") or {}), None),
        network_mode=config.get("NetworkMode"),
        name_servers=config.get("Dns"),
        published_ports=ports or None,
        namespaces={
            "ipc": config.get("IpcMode"),
            "pid": config.get("PidMode") or "private",
            "uts": config.get("UTSMode") or "private",
            "cgroup": config.get("CgroupnsMode"),
            "user": config.get("UsernsMode") or "engine's default",
        },
    )


def _profile(text: str) -> str:
    """Return a short name for a profile, whose text has 14 KB."""
    if text == seccomp.profile():
        return "sandbox"
    return text if text == "unconfined" else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
