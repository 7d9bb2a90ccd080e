"""What a domain is made of, as a tree: nothing here asks libvirt.

Element names are those of libvirt's domain XML format (https://libvirt.org/formatdomain.html). Devices are those named
here and no others: no graphics, USB, audio, shared folder, and no channel to the host but a serial port and two virtio
ports for the workload's output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from sandbox.errors import EngineError

NAME_PREFIX = "sbx-"
METADATA_NAMESPACE = "urn:org.sandbox:domain"
PERIOD = 100_000
"""Microseconds; the CFS period that quotas are given for."""
DISK = "vda"
"""The disk's name in the guest."""
PORT_PREFIX = "org.sandbox."
GUEST_GROUP = "/sys/fs/cgroup/sandbox"
"""The workload's control group in the guest; vm/guest/ knows the path."""

COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 audit=0 apparmor=0 cryptomgr.notests ipv6.disable_ipv6=1 cgroup_no_v1=all"
    " 8250.nr_uarts=1 rcupdate.rcu_expedited=1"
)
TRANSLATED_MIB = 128
"""MiB of translated code that software emulation keeps; a start takes no longer than with the default of 1 GiB."""
EMULATED_COMMAND_LINE = f"{COMMAND_LINE} mitigations=off tsc=reliable no_timer_check"
"""Software emulation does not speculate, so there is nothing to mitigate; its clock needs no calibration either."""
ONE_PROCESSOR = " acpi=noirq"
"""Added where an emulated guest has one processor: otherwise it interprets ACPI's _PRT for each PCI device, 0.1 s each.
Debian's cloud kernel needs ACPI's tables to find a second processor (CONFIG_X86_MPPARSE is not set)."""


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """All that a domain is made of.

    Attributes:
        ident: the sandbox's id.
        accelerator: "kvm" or "tcg".
        vcpus: a whole number of them.
        quota: CPU time per second for all of QEMU together; None for no quota.
        cpuset: CPU list; None for all.
        memory: bytes, a multiple of 1 MiB.
        kernel, initrd, disk: files, readable by QEMU's user.
        bridge, interface, mac: the network card, and its tap's name on the host.
        console: a socket to make for the serial port, and `console_log` for what it says.
        ports: a socket to make for each of the virtio ports, which the guest knows by their number, from 1.
        owner: "+uid:+gid" that QEMU runs as.
    """

    ident: str
    accelerator: str
    vcpus: int
    quota: float | None
    cpuset: str | None
    memory: int
    kernel: Path
    initrd: Path
    disk: Path
    bridge: str
    interface: str
    mac: str
    console: Path
    console_log: Path
    ports: Sequence[Path]
    owner: str


def domain_name(ident: str) -> str:
    """The domain's name; it carries the id."""
    return NAME_PREFIX + ident


def domain_xml(plan: DomainPlan) -> str:
    """The domain as libvirt is told. Values become attributes and text of a tree, which escapes them.

    Raises:
        EngineError: a value has a character that XML cannot hold.
    """
    tcg = plan.accelerator == "tcg"
    root = ET.Element("domain", type="qemu" if tcg else "kvm")
    _text(root, "name", domain_name(plan.ident))
    ET.register_namespace("sandbox", METADATA_NAMESPACE)
    ET.SubElement(_text(root, "metadata"), f"{{{METADATA_NAMESPACE}}}sandbox", id=plan.ident)
    _text(root, "memory", str(plan.memory), unit="b")
    _text(root, "vcpu", str(plan.vcpus), placement="static", **({"cpuset": plan.cpuset} if plan.cpuset else {}))
    _cpu_tuning(root, plan)
    _machine(root, plan, tcg=tcg)
    devices = _text(root, "devices")
    root_bus = _text(devices, "controller", type="pci", index="0", model="pci-root")
    _text(root_bus, "target", hotplug="off")  # nothing is plugged in later, and 32 slots are not looked at
    _disk(devices, plan.disk, DISK)
    card = _text(devices, "interface", type="bridge")
    _text(card, "mac", address=plan.mac)
    _text(card, "source", bridge=plan.bridge)
    _text(card, "target", dev=plan.interface)
    _text(card, "model", type="virtio")
    _text(card, "rom", enabled="no")  # no network boot, and no time spent on offering it
    console = _text(devices, "serial", type="unix")
    _text(console, "source", mode="bind", path=str(plan.console))
    _text(console, "log", file=str(plan.console_log), append="off")
    _text(console, "target", port="0")
    _text(devices, "controller", type="virtio-serial", index="0", ports=str(len(plan.ports) + 1))  # port 0 is no port
    for number, path in enumerate(plan.ports, start=1):
        port = _text(devices, "channel", type="unix")
        _text(port, "source", mode="bind", path=str(path))
        _text(port, "target", type="virtio", name=f"{PORT_PREFIX}{path.name}")
        _text(port, "address", type="virtio-serial", controller="0", bus="0", port=str(number))
    _text(devices, "controller", type="usb", model="none")
    _text(devices, "memballoon", model="none")
    # Fixed, and nothing relabelled: the files are made readable for QEMU's user by us, who remove them too. The
    # shared ones would else change hands with each start and end of a sandbox.
    label = _text(root, "seclabel", type="static", model="dac", relabel="no")
    _text(label, "label", plan.owner)
    return _serialised(root)


_NOT_XML = re.compile("[^\\t\\n\\u0020-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""What no XML document can hold, not even escaped (XML 1.0, production 2, Char), and the carriage return, which a
reader may take for a line feed (2.11)."""


def _serialised(root: ET.Element) -> str:
    """The tree as text.

    Raises:
        EngineError: a value has a character that XML has no way to write.
    """
    for element in root.iter():
        for value in (element.text or "", *element.attrib.values()):
            if _NOT_XML.search(value):
                raise EngineError(f"{value!r} cannot be told to libvirt", "a path without control characters")
    return ET.tostring(root, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _cpu_tuning(root: ET.Element, plan: DomainPlan) -> None:
    tuning = _text(root, "cputune")
    if plan.cpuset:
        _text(tuning, "emulatorpin", cpuset=plan.cpuset)
    if plan.quota is not None:
        # Of the whole process: what the emulator does for the guest is the sandbox's time as well.
        _text(tuning, "global_period", str(PERIOD))
        _text(tuning, "global_quota", str(round(plan.quota * PERIOD)))


def _machine(root: ET.Element, plan: DomainPlan, *, tcg: bool) -> None:
    system = _text(root, "os")
    # The PC starts an emulated guest as fast as the others (q35 is not faster, microvm hangs now and then under
    # QEMU 7.2), and libvirt knows it best.
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    _text(system, "kernel", str(plan.kernel))
    _text(system, "initrd", str(plan.initrd))
    line = COMMAND_LINE if not tcg else EMULATED_COMMAND_LINE + (ONE_PROCESSOR if plan.vcpus == 1 else "")
    _text(system, "cmdline", line)
    features = _text(root, "features")
    _text(features, "acpi")
    _text(features, "apic")
    if tcg:
        # QEMU keeps up to 1 GiB of translated code otherwise, on top of the guest's memory.
        _text(_text(features, "tcg"), "tb-cache", str(TRANSLATED_MIB), unit="MiB")
    _processor(root, tcg=tcg)
    clock = _text(root, "clock", offset="utc")
    _text(clock, "timer", name="hpet", present="no")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")


def _processor(root: ET.Element, *, tcg: bool) -> None:
    """The host's own processor, or an emulated one that is cheap to emulate.

    Vector units beyond SSE make an emulated guest slower by a tenth: the C library uses them for every string. The
    random number generator is there in both; a guest without one waits for entropy for a second.
    """
    if not tcg:
        _text(root, "cpu", mode="host-passthrough")
        return
    processor = _text(root, "cpu", mode="custom", match="exact", check="none")
    _text(processor, "model", "Nehalem", fallback="forbid")
    _text(processor, "feature", policy="require", name="rdrand")


def _disk(devices: ET.Element, path: Path, target: str) -> None:
    disk = _text(devices, "disk", type="file", device="disk")
    _text(disk, "driver", name="qemu", type="raw")
    _text(disk, "source", file=str(path))
    _text(disk, "target", dev=target, bus="virtio")
    _text(disk, "readonly")
    _text(disk, "shareable")
