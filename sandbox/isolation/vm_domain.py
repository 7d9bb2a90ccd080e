"""The libvirt domain of a sandbox: what it is made of, as a tree, and the calls that make, ask and end it.

Element names are those of libvirt's domain XML format (https://libvirt.org/formatdomain.html). This module alone
imports the library; it does so at the first connection.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from sandbox.errors import EngineError, UnavailableError
from sandbox.record import ID_PATTERN

URI = "qemu:///system"
NAME_PREFIX = "sbx-"
METADATA_NAMESPACE = "urn:org.sandbox:domain"
PERIOD = 100_000
"""Microseconds; the CFS period that quotas are given for."""

LOG_DIR = Path("/var/log/libvirt/qemu")
PID_DIR = Path("/run/libvirt/qemu")

COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 audit=0 apparmor=0 cryptomgr.notests ipv6.disable_ipv6=1 cgroup_no_v1=all"
    " 8250.nr_uarts=2 rcupdate.rcu_expedited=1"
)
EMULATED_COMMAND_LINE = f"{COMMAND_LINE} mitigations=off tsc=reliable no_timer_check"
"""Software emulation does not speculate, so there is nothing to mitigate; its clock needs no calibration either."""


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
        console: a socket to make for the first serial port, and `console_log` for what it says.
        output: a socket and a log likewise for the second one, the workload's output.
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
    output_log: Path
    owner: str


def domain_name(ident: str) -> str:
    """The domain's name; it carries the id."""
    return NAME_PREFIX + ident


def domain_xml(plan: DomainPlan) -> str:
    """The domain as libvirt is told. Values become attributes and text of a tree, which escapes them."""
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
    _disk(devices, plan.disk, "vda")
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
    output = _text(devices, "serial", type="file")
    _text(output, "source", path=str(plan.output_log), append="off")
    _text(output, "target", port="1")
    _text(devices, "controller", type="usb", model="none")
    _text(devices, "memballoon", model="none")
    # Fixed, and nothing relabelled: the files are made readable for QEMU's user by us, who remove them too. The
    # shared ones would else change hands with each start and end of a sandbox.
    label = _text(root, "seclabel", type="static", model="dac", relabel="no")
    _text(label, "label", plan.owner)
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
    _text(system, "cmdline", EMULATED_COMMAND_LINE if tcg else COMMAND_LINE)
    features = _text(root, "features")
    _text(features, "acpi")
    _text(features, "apic")
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


@dataclass(frozen=True, slots=True)
class Live:
    """What the live domain says of itself.

    Attributes:
        running: executing, not paused or ended.
        vcpus: their number.
        quota: CPU time per second of the whole process; None for no quota.
        memory: bytes.
        cpu_seconds: used by QEMU since its start.
        resident: bytes of the host's memory that QEMU holds; None when it is not said.
    """

    running: bool
    vcpus: int
    quota: float | None
    memory: int
    cpu_seconds: float
    resident: int | None


class Hypervisor:
    """A connection to libvirt, opened at the first question."""

    def __init__(self, uri: str = URI) -> None:
        self.uri = uri
        self._connection: Any = None

    @contextmanager
    def _talking(self, what: str) -> Iterator[Any]:
        """The connection; libvirt's words become an EngineError.

        Raises:
            UnavailableError: the binding is not installed.
            EngineError: libvirt refuses.
        """
        try:
            import libvirt
        except ImportError as error:
            raise UnavailableError(
                "the Python binding of libvirt is not installed", "pip install 'sandbox-manager[vm]'"
            ) from error
        try:
            if self._connection is None or not self._connection.isAlive():
                # Its default prints every error to stderr, those that are handled here too.
                libvirt.registerErrorHandler(lambda _context, _error: None, None)
                self._connection = libvirt.open(self.uri)
            yield self._connection
        except libvirt.libvirtError as error:
            raise EngineError(f"{what}: {error.get_error_message() or error}") from error

    def connect(self) -> None:
        """Open the connection.

        Raises:
            UnavailableError, EngineError
        """
        with self._talking("libvirt cannot be reached"):
            pass

    def qemu_owner(self) -> tuple[int, int]:
        """User and group id that libvirt runs QEMU as, from its capabilities.

        Raises:
            EngineError: it does not say.
        """
        with self._talking("libvirt's capabilities cannot be read") as connection:
            capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314 - libvirtd's own
        for model in capabilities.iterfind("./host/secmodel"):
            label = model.findtext("baselabel", "")
            match = re.fullmatch(r"\+(\d+):\+(\d+)", label)
            if model.findtext("model") == "dac" and match:
                return int(match[1]), int(match[2])
        raise EngineError("libvirt does not say which user QEMU runs as", "enable its DAC security driver")

    def create_paused(self, xml: str) -> None:
        """Start QEMU with the guest's processors stopped. The domain is transient: it is gone when QEMU is.

        Raises:
            EngineError
        """
        import libvirt

        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_VALIDATE
        with self._talking("the virtual machine could not be created") as connection:
            connection.createXML(xml, flags)

    def resume(self, ident: str) -> None:
        """Let the guest's processors run.

        Raises:
            EngineError
        """
        with self._talking("the virtual machine could not be started") as connection:
            connection.lookupByName(domain_name(ident)).resume()

    def _lookup(self, connection: Any, ident: str) -> Any | None:
        import libvirt

        try:
            return connection.lookupByName(domain_name(ident))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def exists(self, ident: str) -> bool:
        """Whether there is a domain, running or not."""
        with self._talking("the virtual machine cannot be looked up") as connection:
            return self._lookup(connection, ident) is not None

    def live(self, ident: str) -> Live | None:
        """What the domain says of itself; None when there is none.

        Raises:
            EngineError
        """
        import libvirt

        with self._talking("the virtual machine cannot be inspected") as connection:
            domain = self._lookup(connection, ident)
            if domain is None:
                return None
            try:
                state, memory_kib, _, vcpus, nanoseconds = domain.info()
                scheduler = domain.schedulerParameters() if self._has_cpu_cgroup(domain) else {}
                resident = domain.memoryStats().get("rss")
            except libvirt.libvirtError as error:
                if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    return None  # it ended between two questions
                raise
        quota, period = scheduler.get("global_quota", 0), scheduler.get("global_period", 0)
        return Live(
            running=state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED),
            vcpus=vcpus,
            quota=quota / period if quota > 0 and period > 0 else None,
            memory=memory_kib * 1024,
            cpu_seconds=nanoseconds / 1e9,
            resident=None if resident is None else resident * 1024,
        )

    @staticmethod
    def _has_cpu_cgroup(domain: Any) -> bool:
        """Whether libvirt has a control group for the domain's CPU time."""
        import libvirt

        try:
            domain.schedulerType()
        except libvirt.libvirtError:
            return False
        return True

    def destroy(self, ident: str) -> bool:
        """End QEMU and forget the domain. Returns whether there was one.

        Raises:
            EngineError
        """
        import libvirt

        gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
        with self._talking("the virtual machine could not be removed") as connection:
            domain = self._lookup(connection, ident)
            if domain is None:
                return False
            try:
                persistent = bool(domain.isPersistent())
                if domain.isActive():
                    domain.destroy()
                if persistent:
                    domain.undefine()
            except libvirt.libvirtError as error:
                # A transient domain is gone as soon as its QEMU has ended, which it may do by itself meanwhile.
                if error.get_error_code() not in gone:
                    raise
        return True

    def idents(self) -> list[str]:
        """Ids of all domains that are ours, by their name.

        Raises:
            EngineError
        """
        with self._talking("the virtual machines cannot be listed") as connection:
            names = [domain.name() for domain in connection.listAllDomains()]
        return sorted(ident for name in names if (ident := ident_of(name)) is not None)


def ident_of(name: str) -> str | None:
    """The id in a domain's name, None where it is none of ours."""
    ident = name.removeprefix(NAME_PREFIX)
    return ident if ident != name and ID_PATTERN.fullmatch(ident) else None


def qemu_pid(ident: str) -> int | None:
    """QEMU's process on this host; libvirt keeps it in a file, and has no call for it."""
    try:
        return int((PID_DIR / f"{domain_name(ident)}.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def log_files(ident: str | None = None) -> list[Path]:
    """What libvirt logs of a domain and leaves behind, rotated ones included; for all of ours without an id."""
    found = []
    with contextlib.suppress(OSError):
        for path in LOG_DIR.glob(f"{NAME_PREFIX}*.log*"):
            owner = ident_of(path.name.partition(".log")[0])
            if owner is not None and ident in (None, owner):
                found.append(path)
    return sorted(found)
