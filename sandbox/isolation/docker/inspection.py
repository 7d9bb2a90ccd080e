"""What is in force around a container: as the kernel has it where the engine is on this host, and as dockerd has it.

Sources: proc_pid_status(5), proc_pid_mountinfo(5), namespaces(7), and the Docker Engine API, "Inspect a container".
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.isolation.docker import seccomp
from sandbox.isolation.docker.usage import LINK
from sandbox.spec import Limits

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_CAPABILITY_SETS = {
    "inheritable": "CapInh",
    "permitted": "CapPrm",
    "effective": "CapEff",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}
_SECCOMP = {"0": "disabled", "1": "strict", "2": "filter"}
_SECCOMP_OPTION = "seccomp="


def read(found: Mapping[str, Any], pid: int | None, in_force: Limits, *, shared: bool) -> dict[str, Any]:
    """All sections.

    Args:
        found: the engine's description of the container.
        pid: of its init on this host; None when it does not run, or not here.
        in_force: the limits, as read back.
        shared: whether its processes are the host's: the mounts of others say nothing of the inside.
    """
    status = _text(f"/proc/{pid}/status") if pid else ""
    mounts = _text(f"/proc/{pid}/mountinfo") if pid and shared else ""
    return {
        **workload(status, mounts),
        "namespaces": {name: _namespace(pid, name) for name in NAMESPACES},
        "limits": limits(in_force),
        "network": _network(found, pid),
        "engine": _engine(found),
    }


def workload(status: str, mounts: str) -> dict[str, Any]:
    """The sections that a kernel says of a process.

    Args:
        status: the text of its /proc/pid/status; "" where it cannot be had.
        mounts: of its /proc/pid/mountinfo.
    """
    lines = (line.partition(":") for line in status.splitlines())
    fields = {name: value.strip() for name, colon, value in lines if colon}
    new_privileges = fields.get("NoNewPrivs")
    return {
        "user": {
            "uid": _first(fields.get("Uid")),
            "gid": _first(fields.get("Gid")),
            "groups": [int(group) for group in fields["Groups"].split()] if "Groups" in fields else None,
            "no_new_privileges": None if new_privileges is None else new_privileges == "1",
        },
        "capabilities": {name: _bits(fields.get(field)) for name, field in _CAPABILITY_SETS.items()},
        "seccomp": {"mode": _SECCOMP.get(fields.get("Seccomp", "")), "filters": _first(fields.get("Seccomp_filters"))},
        "mounts": [_mount(line) for line in mounts.splitlines() if " - " in line] or None,
    }


def limits(found: Limits) -> dict[str, Any]:
    """The limits, as read back."""
    return {
        "cpus": found.cpus,
        "memory": found.memory,
        "pids": found.pids,
        "disk": found.disk,
        "source": found.source,
    }


def _engine(found: Mapping[str, Any]) -> dict[str, Any]:
    """What dockerd holds the container to; settings as it has them, not as they were asked for."""
    config = found["HostConfig"]
    options = config.get("SecurityOpt") or []
    profiles = [one.removeprefix(_SECCOMP_OPTION) for one in options if one.startswith(_SECCOMP_OPTION)]
    ports = [
        f"{one['HostIp']}:{one['HostPort']}->{inside}"
        for inside, places in (found["NetworkSettings"].get("Ports") or {}).items()
        for one in places or ()
    ]
    return {
        "container": found["Id"],
        "runtime": config.get("Runtime"),
        "user": found["Config"].get("User"),
        "privileged": config.get("Privileged"),
        "capabilities_dropped": config.get("CapDrop"),
        "capabilities_added": config.get("CapAdd"),
        "security_options": [one for one in options if not one.startswith(_SECCOMP_OPTION)],
        "seccomp_profile": _profile(profiles[0]) if profiles else "engine's default",
        "root_read_only": config.get("ReadonlyRootfs"),
        "tmpfs": config.get("Tmpfs"),
        "swap": None if not config.get("MemorySwap") else max(0, config["MemorySwap"] - config["Memory"]),
        "mounts": [_bind(one) for one in found.get("Mounts") or () if one["Type"] != "tmpfs"],
        "devices": config.get("Devices") or [],
        "restart_policy": (config.get("RestartPolicy") or {}).get("Name"),
        "log": config.get("LogConfig"),
        "published_ports": ports or None,
        "namespaces": {
            "ipc": config.get("IpcMode"),
            "pid": config.get("PidMode") or "private",
            "uts": config.get("UTSMode") or "private",
            "cgroup": config.get("CgroupnsMode"),
            "user": config.get("UsernsMode") or "engine's default",
        },
    }


def _bind(mount: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": mount["Type"],
        "source": mount.get("Source"),
        "target": mount["Destination"],
        "read_only": not mount["RW"],
        "propagation": mount.get("Propagation"),
    }


def _profile(text: str) -> str:
    """A profile in a word; the text has 14 KB."""
    if text == seccomp.profile():
        return "sandbox"
    return text if text == "unconfined" else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _network(found: Mapping[str, Any], pid: int | None) -> dict[str, Any]:
    networks: Mapping[str, Any] = found["NetworkSettings"].get("Networks") or {}
    name = next(iter(networks), None)
    endpoint: Mapping[str, Any] = {} if name is None else networks[name]
    return {
        "address": endpoint.get("IPAddress") or (endpoint.get("IPAMConfig") or {}).get("IPv4Address"),
        "mac": endpoint.get("MacAddress") or None,
        "routes": None if pid is None else _routes(_text(f"/proc/{pid}/net/route")),
        "network": name,
        "mode": found["HostConfig"].get("NetworkMode"),
        "link": LINK if endpoint else None,
        "name_servers": found["HostConfig"].get("Dns"),
    }


def _routes(text: str) -> list[str]:
    """/proc/net/route in the notation of ip-route(8); its numbers are hexadecimal, in the machine's byte order."""
    found = []
    for line in text.splitlines()[1:]:
        link, destination, gateway, _, _, _, _, mask = line.split()[:8]
        size = int(mask, 16).bit_count()
        place = "default" if not size else f"{_address(destination)}/{size}"
        found.append(f"{place} via {_address(gateway)} dev {link}" if int(gateway, 16) else f"{place} dev {link}")
    return found


def _address(text: str) -> str:
    return socket.inet_ntoa(struct.pack("=I", int(text, 16)))


def _namespace(pid: int | None, name: str) -> str | None:
    """Whether a process has a namespace of its own, or shares the one of this command."""
    with suppress(OSError):
        if pid is not None:
            same = os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
            return "host" if same else "own"
    return None


def _mount(line: str) -> dict[str, Any]:
    before, _, after = line.partition(" - ")
    root, place, options = before.split()[3:6]
    kind, source, *_ = after.split()
    return {
        "target": _unescaped(place),
        "type": kind,
        "source": _unescaped(source),
        "root": _unescaped(root),
        "options": options.split(","),
    }


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text(path: str) -> str:
    """A file of /proc, "" when its process is gone."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def _bits(text: str | None) -> str | None:
    return None if text is None else f"{int(text, 16):016x}"


def _first(text: str | None) -> int | None:
    words = (text or "").split()
    return int(words[0]) if words and words[0].isdigit() else None
