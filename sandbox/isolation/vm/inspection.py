"""What is in force around a machine's workload: asked of the live domain, of QEMU's process, and inside the guest.

The guest's part is what its kernel says over SSH. Somebody who owns that kernel may have it say anything: what holds
from outside is in the sections `domain` and `engine`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from sandbox.isolation.vm.xml import GUEST_GROUP
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
"""proc(5), the field Seccomp of /proc/pid/status."""
_MARK = "@@"

QUESTION = f"""
pid=$(head -n 1 {GUEST_GROUP}/cgroup.procs)
say() {{ echo "{_MARK}$1"; cat "$2" 2>/dev/null; }}
say status "/proc/$pid/status"
say mounts "/proc/$pid/mountinfo"
say cmdline /proc/cmdline
say release /proc/sys/kernel/osrelease
say meminfo /proc/meminfo
say swaps /proc/swaps
say address /sys/class/net/eth0/address
echo "{_MARK}processors"; nproc --all
echo "{_MARK}namespaces"; readlink /proc/$pid/ns/* /proc/1/ns/*
echo "{_MARK}addresses"; /usr/lib/sandbox-vm/busybox ip -4 -o addr
echo "{_MARK}routes"; /usr/lib/sandbox-vm/busybox ip -4 route
"""
"""For the guest's root shell. The first process of the group is the workload's init."""


def sections(text: str) -> dict[str, str]:
    """The answer to QUESTION, by section."""
    found: dict[str, str] = {}
    for part in f"\n{text}".split(f"\n{_MARK}")[1:]:
        name, _, rest = part.partition("\n")
        found[name] = rest
    return found


def status(text: str) -> dict[str, str]:
    """The fields of /proc/pid/status (proc(5))."""
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def guest(answer: Mapping[str, str] | None, address: str) -> dict[str, Any]:
    """The sections about the workload, all None where the guest was not asked or did not answer."""
    fields = status(answer["status"]) if answer else {}
    answer = answer or {}
    return {
        "user": _user(fields),
        "capabilities": {name: _bits(fields.get(field)) for name, field in _CAPABILITY_SETS.items()},
        "seccomp": {"mode": _SECCOMP.get(fields.get("Seccomp", "")), "filters": _number(fields.get("Seccomp_filters"))},
        "namespaces": _namespaces(answer.get("namespaces", "")),
        "mounts": [_mount(line) for line in answer["mounts"].splitlines()] if "mounts" in answer else None,
        "network": {
            "address": _address(answer.get("addresses", "")) if answer else address,
            "mac": answer.get("address", "").strip() or None,
            "routes": answer["routes"].splitlines() if "routes" in answer else None,
        },
        "guest": _machine(answer) if answer else None,
    }


def _user(fields: Mapping[str, str]) -> dict[str, Any]:
    new_privileges = fields.get("NoNewPrivs")
    return {
        "uid": _number((fields.get("Uid") or "").split("\t")[0]),
        "gid": _number((fields.get("Gid") or "").split("\t")[0]),
        "groups": [int(group) for group in fields["Groups"].split()] if "Groups" in fields else None,
        "no_new_privileges": None if new_privileges is None else new_privileges == "1",
    }


def _machine(answer: Mapping[str, str]) -> dict[str, Any]:
    total = re.search(r"^MemTotal:\s+(\d+) kB$", answer.get("meminfo", ""), re.MULTILINE)
    return {
        "kernel": answer.get("release", "").strip() or None,
        "command_line": answer.get("cmdline", "").strip() or None,
        "processors": _number(answer.get("processors", "").strip()),
        "memory": int(total[1]) * 1024 if total else None,
        "swap": len(answer["swaps"].splitlines()) > 1 if "swaps" in answer else None,
    }


def _namespaces(text: str) -> dict[str, Any] | None:
    """Which of the guest's namespaces the workload does not share with the guest's init. The wall is the machine."""
    links = text.split()
    half = len(links) // 2
    if not links or len(links) % 2:
        return None
    own = {link.partition(":")[0] for link, first in zip(links[:half], links[half:], strict=True) if link != first}
    return {"machine": "own", **{name: ("own" if name in own else "guest") for name in NAMESPACES}}


def _mount(line: str) -> dict[str, Any]:
    """A line of mountinfo (proc(5))."""
    before, _, after = line.partition(" - ")
    place, options = before.split()[4:6]
    kind, source, *_ = after.split()
    return {"target": _unescaped(place), "type": kind, "source": _unescaped(source), "options": options.split(",")}


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _address(text: str) -> str | None:
    match = re.search(r"\beth0\s+inet ([0-9.]+)/", text)
    return match[1] if match else None


def _bits(text: str | None) -> str | None:
    return None if text is None else f"{int(text, 16):016x}"


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def limits(found: Limits | None) -> dict[str, Any]:
    """The limits, as read back."""
    if found is None:
        return {"cpus": None, "memory": None, "pids": None, "disk": None, "source": None}
    return {
        "cpus": found.cpus,
        "memory": found.memory,
        "pids": found.pids,
        "disk": found.disk,
        "source": found.source,
    }


def domain(description: str | None) -> dict[str, Any] | None:
    """The live domain, from its XML: what it computes on, and every device that it has."""
    if description is None:
        return None
    root = ET.fromstring(description)  # noqa: S314 - libvirtd's own
    devices = root.find("./devices")
    found = list(devices) if devices is not None else []
    kind = root.find("./os/type")
    quota, period = root.findtext("./cputune/global_quota"), root.findtext("./cputune/global_period")
    return {
        "accelerator": "tcg" if root.get("type") == "qemu" else root.get("type"),
        "machine": None if kind is None else kind.get("machine"),
        "processors": _number(root.findtext("./vcpu")),
        "cpuset": None if (vcpu := root.find("./vcpu")) is None else vcpu.get("cpuset"),
        "quota": int(quota) / int(period) if quota and period else None,
        "memory": _kibibytes(root.find("./memory")),
        "devices": sorted(name for device in found if (name := _device(device)) is not None),
        "disks": [_disk(device) for device in root.iterfind("./devices/disk")],
        "security_label": root.findtext("./seclabel[@model='dac']/label"),
    }


def _device(device: ET.Element) -> str | None:
    """A device in words; None for an element that says that there is no such device, and for the program itself."""
    kind = device.get("type")
    if device.tag == "emulator" or "none" in (device.get("model"), kind if device.tag == "audio" else None):
        return None
    model = device.find("./model")
    detail = kind or device.get("model") or (model.get("type") if model is not None else None)
    return device.tag if detail is None else f"{device.tag} {detail}"


def _disk(device: ET.Element) -> dict[str, Any]:
    source, driver = device.find("./source"), device.find("./driver")
    return {
        "file": None if source is None else source.get("file"),
        "format": None if driver is None else driver.get("type"),
        "read_only": device.find("./readonly") is not None,
    }


def _kibibytes(element: ET.Element | None) -> int | None:
    """The live domain says memory in KiB, whatever unit it was told."""
    return None if element is None or element.get("unit") != "KiB" else int(element.text or 0) * 1024


def engine(pid: int | None) -> dict[str, Any] | None:
    """QEMU's process, as the host's kernel has it; None when it is gone."""
    if pid is None:
        return None
    try:
        fields = status(Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    return {
        "program": command[0],
        "sandbox_option": command[command.index("-sandbox") + 1] if "-sandbox" in command else None,
        "user": _user(fields),
        "capabilities": {name: _bits(fields.get(field)) for name, field in _CAPABILITY_SETS.items()},
        "seccomp": {"mode": _SECCOMP.get(fields.get("Seccomp", "")), "filters": _number(fields.get("Seccomp_filters"))},
        "namespaces": _host_namespaces(pid),
    }


def _host_namespaces(pid: int) -> dict[str, str | None]:
    """Which namespaces QEMU shares with us, who are outside every sandbox."""
    found: dict[str, str | None] = {}
    for name in NAMESPACES:
        found[name] = None
        with suppress(OSError):
            same = os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
            found[name] = "host" if same else "own"
    return found
