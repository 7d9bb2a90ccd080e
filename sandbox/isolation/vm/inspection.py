"""Inspection of a virtual machine, from inside the guest, from QEMU's process, and from the live domain.

A compromised guest kernel can report anything; only the sections `process` and `domain` are observed from outside.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

from sandbox.isolation import inspection
from sandbox.isolation.base import State
from sandbox.isolation.in_force import Disk, Domain, Inspection
from sandbox.isolation.vm.xml import GUEST_GROUP
from sandbox.kernel import procfs
from sandbox.spec import Limits
from sandbox.state.record import Record

_COUNTERS = "/proc/vmstat"
_MAC = f"/sys/class/net/{inspection.LINK}/address"
QUESTION = inspection.question(f"$(head -n 1 {GUEST_GROUP}/cgroup.procs)", _COUNTERS, _MAC)
"""The script for the guest's root shell. The first process of the group is the workload's init."""
_OOM_WORDS = b"ut of memory: Killed process"
"""A message of the guest's kernel on its console, after an OOM kill in the guest or in a control group."""
_LOG_BYTES = 1024 * 1024


@inspection.readable()
def inspect(
    record: Record, answer: str | None, description: str | None, state: State, limits: Limits | None, console_log: Path
) -> Inspection:
    """Return the complete inspection.

    Args:
        record: of the sandbox.
        answer: the guest's output of QUESTION; None if it was not asked or does not answer.
        description: the live domain's XML; None if there is none.
        state: its current state.
        limits: as read back; None if they cannot be read.
        console_log: the serial console's log.
    """
    init = inspection.inside(answer)
    live = None if description is None else domain(description, state.pid)
    said = inspection.limits_in_force(
        limits,
        init,
        swap=procfs.kibibytes(init.read("/proc/meminfo") or "", "SwapTotal"),
        cpuset=None if live is None else live.cpuset,
    )
    mac = (init.read(_MAC) or "").strip() or None
    return inspection.inspection(
        init,
        state.pid,
        said,
        inspection.network_of(init, record.address, own=True if state.running else None, mac=mac),
        inspection.outcome(
            record,
            ended=not state.running and record.process is not None,
            code=state.exit_code,
            oom_killed=_oom_killed(init, console_log),
            time=_end(console_log),
        ),
        domain=live,
    )


def _oom_killed(init: inspection.View, console_log: Path) -> bool | None:
    """Return whether there was an OOM kill: by the guest's counter, or else by its kernel's messages on the console."""
    kills = procfs.keyed(init.read(_COUNTERS) or "").get("oom_kill")
    if kills is not None:
        return kills > 0
    with suppress(OSError), console_log.open("rb") as stream:
        stream.seek(max(0, console_log.stat().st_size - _LOG_BYTES))
        return _OOM_WORDS in stream.read(_LOG_BYTES)
    return None


def _end(console_log: Path) -> float | None:
    """Return the time of the last message on the console, in which the guest's init reports the exit code."""
    with suppress(OSError):
        return console_log.stat().st_mtime
    return None


def domain(description: str, pid: int | None) -> Domain:
    """Return the section `domain`, from the live domain's XML and QEMU's command line."""
    root = ET.fromstring(description)  # noqa: S314 - libvirtd's own
    devices = root.find("./devices")
    found = list(devices) if devices is not None else []
    kind, vcpu = root.find("./os/type"), root.find("./vcpu")
    quota, period = root.findtext("./cputune/global_quota"), root.findtext("./cputune/global_period")
    command = (inspection.host_view(pid).text("cmdline") or "").split("\0")
    processors = root.findtext("./vcpu", "")
    return Domain(
        accelerator="tcg" if root.get("type") == "qemu" else root.get("type"),
        machine=None if kind is None else kind.get("machine"),
        processors=int(processors) if processors.isdigit() else None,
        cpuset=None if vcpu is None else vcpu.get("cpuset"),
        quota=int(quota) / int(period) if quota and period else None,
        memory=_kibibytes(root.find("./memory")),
        devices=sorted(name for device in found if (name := _device(device)) is not None),
        disks=[_disk(device) for device in root.iterfind("./devices/disk")],
        security_label=root.findtext("./seclabel[@model='dac']/label"),
        sandbox_option=command[command.index("-sandbox") + 1] if "-sandbox" in command else None,
    )


def _device(device: ET.Element) -> str | None:
    """Return a device's kind and model; None for the emulator, and for an element that says there is no device."""
    kind = device.get("type")
    if device.tag == "emulator" or "none" in (device.get("model"), kind if device.tag == "audio" else None):
        return None
    model = device.find("./model")
    detail = kind or device.get("model") or (model.get("type") if model is not None else None)
    return device.tag if detail is None else f"{device.tag} {detail}"


def _disk(device: ET.Element) -> Disk:
    source, driver = device.find("./source"), device.find("./driver")
    return Disk(
        None if source is None else source.get("file"),
        None if driver is None else driver.get("type"),
        read_only=device.find("./readonly") is not None,
    )


def _kibibytes(element: ET.Element | None) -> int | None:
    """Convert an amount of memory to bytes; the live domain always gives KiB."""
    return None if element is None or element.get("unit") != "KiB" else int(element.text or 0) * 1024
