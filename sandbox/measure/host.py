"""Describe this host for the document, and find what may disturb a measurement on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox import images
from sandbox.kernel import cgroup
from sandbox.results import Caveat, Host

BUSY_SHARE = 0.10
"""Share of the CPU time before the run above which other programs affect the figures."""
QUIET_SECONDS = 0.5
VERSION_TIMEOUT = 10.0
_CPU = Path("/sys/devices/system/cpu")

_VERSION_COMMANDS: dict[str, tuple[str, ...]] = {
    "docker": ("docker", "version", "--format", "{{.Server.Version}}"),
    "runsc": ("runsc", "--version"),
    "libvirt": ("libvirtd", "--version"),
    "qemu": (f"qemu-system-{platform.machine()}", "--version"),
    "wrk": ("wrk", "--version"),
}


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Clock ticks of all CPUs since boot, from the first line of /proc/stat (proc(5))."""

    total: int
    idle: int
    steal: int

    @classmethod
    def now(cls) -> CpuTimes:
        """Read the current counters."""
        return cls.parse(Path("/proc/stat").read_text(encoding="ascii"))

    @classmethod
    def parse(cls, text: str) -> CpuTimes:
        """Parse the text of /proc/stat. guest and guest_nice are part of user and nice, so they are left out."""
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(field) for field in text.split("\n")[0].split()[1:9]
        )
        return cls(user + nice + system + idle + iowait + irq + softirq + steal, idle + iowait, steal)

    def steal_since(self, earlier: CpuTimes) -> float | None:
        """Return the share of CPU time that other guests of the hypervisor took; None if no tick has passed."""
        ticks = self.total - earlier.total
        return max(0, self.steal - earlier.steal) / ticks if ticks > 0 else None

    def busy_since(self, earlier: CpuTimes) -> float | None:
        """Return the share of CPU time that was not idle; None if no tick has passed."""
        ticks = self.total - earlier.total
        return 1 - (self.idle - earlier.idle) / ticks if ticks > 0 else None


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The CPUs of a measurement.

    Attributes:
        server: the CPU of the sandboxes.
        generator: the CPU of the load generator.
        caveat: why the two disturb each other; None if they do not.
    """

    server: int
    generator: int
    caveat: Caveat | None


def plan_cpus(allowed: Collection[int], siblings: Sequence[Collection[int]] = ()) -> CpuPlan:
    """Choose a CPU for the server and another for the generator, on different cores if possible.

    Args:
        allowed: the CPUs that this process may use.
        siblings: sets of CPUs that share a core.
    """
    ordered = sorted(allowed)
    server = ordered[0]
    same_core = next((set(group) for group in siblings if server in group), {server})
    elsewhere = [cpu for cpu in ordered if cpu not in same_core]
    if elsewhere:
        return CpuPlan(server, elsewhere[-1], None)
    if len(ordered) > 1:
        text = (
            f"server and generator run on two threads of one core ({server} and {ordered[-1]}): throughput is too low"
        )
        return CpuPlan(server, ordered[-1], Caveat("one-core", text))
    text = "this host has one CPU, which server and load generator share: throughput and latency include both"
    return CpuPlan(server, server, Caveat("one-cpu", text))


def cpu_plan() -> CpuPlan:
    """Choose the CPUs on this host, with the cores from sysfs (admin-guide/cputopology.rst)."""
    allowed = os.sched_getaffinity(0)
    groups = []
    for cpu in allowed:
        text = _read(_CPU / f"cpu{cpu}/topology/thread_siblings_list")
        groups.append(parse_cpu_list(text) if text else {cpu})
    return plan_cpus(allowed, groups)


def parse_cpu_list(text: str) -> set[int]:
    """Parse a list of CPU numbers such as "0-1,4" (cpuset(7), List format).

    Raises:
        ValueError: it is not such a list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def describe() -> Host:
    """Describe this host. Takes some tenths of a second, as it asks each engine for its version."""
    return Host(
        kernel=platform.release(),
        machine=platform.machine(),
        system=_system(),
        cpu_model=_cpu_model(),
        cpus=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        virtualisation=_virtualisation(),
        cgroups=cgroup.hierarchy().mode,
        clocksource=_read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or "unknown",
        governor=_read(_CPU / "cpu0/cpufreq/scaling_governor"),
        load_average=list(os.getloadavg()),
        versions=_versions(),
        images=image_digests(),
    )


def image_digests() -> dict[str, str]:
    """Return the digest of each form of the root filesystem that is built."""
    found = {form.value: images.find(form) for form in images.Form}
    return {form: image.digest for form, image in found.items() if image is not None}


def caveats(host: Host, *, samples: int, few: int, tenants: int) -> list[Caveat]:
    """Return what makes figures from this host less reliable, as far as it is known before the run.

    Args:
        host: the description of this host.
        samples: number of sandboxes per level in the run.
        few: the number of samples below which there is no 95 % interval.
        tenants: number of sandboxes that run already.
    """
    found = []
    busy = _busy_share()
    if busy is not None and busy > BUSY_SHARE:
        found.append(Caveat("busy", f"before the run {busy:.0%} of the CPU time went to other programs"))
    elif host.load_average[0] > 0.5 * host.cpus:
        found.append(Caveat("load", f"the load average before the run was {host.load_average[0]:.1f}"))
    if tenants:
        noun = "sandbox runs" if tenants == 1 else "sandboxes run"
        found.append(Caveat("tenants", f"{tenants} other {noun} on this host"))
    if host.governor not in (None, "performance"):
        found.append(Caveat("governor", f"the CPU frequency governor is {host.governor!r}, so the clock may change"))
    if host.virtualisation != "none":
        text = f"this host is itself a virtual machine ({host.virtualisation}): its neighbours may show in the figures"
        found.append(Caveat("virtual-host", text))
    if samples < few:
        text = f"{samples} per level is few: below {few}, an interval cannot reach 95 %"
        found.append(Caveat("few-samples", text))
    return found


def _busy_share() -> float | None:
    before = CpuTimes.now()
    time.sleep(QUIET_SECONDS)
    return CpuTimes.now().busy_since(before)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu_model() -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return match[1] if match else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _virtualisation() -> str:
    """Return the hypervisor, from the CPUID bit and the firmware's vendor; one that hides itself is not found."""
    vendor = _read(Path("/sys/class/dmi/id/sys_vendor"))
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", _read(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    kind = _read(Path("/sys/hypervisor/type"))
    if not (flags or kind):
        return "none"
    return kind or vendor or "kind unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name, argv in _VERSION_COMMANDS.items():
        version = _version(argv)
        if version:
            found[name] = version
    return found


def _version(argv: Sequence[str]) -> str | None:
    """Return the first text in a program's output that looks like a version; None if there is no program or output."""
    program = shutil.which(argv[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, *argv[1:]], capture_output=True, timeout=VERSION_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(rb"\d+(?:\.\d+)+[\w.+~:-]*", result.stdout or result.stderr)
    return match[0].decode("ascii", errors="replace") if match else None
