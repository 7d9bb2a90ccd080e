"""The capabilities by name, and those that every isolation level requires.

A check looks at the host and returns a `Finding`; it never raises for what is missing. `Survey` runs each check at
most once, and recalls from the state directory what the running kernel has already shown that it can do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from sandbox.host import kernel, kvm, libvirt, programs, vagrant, verdicts
from sandbox.host.finding import Finding

__all__ = ["CHECKS", "COMMON", "EXTRAS", "OPTIONAL", "Finding", "Optional", "Survey"]

Check = Callable[["Survey"], Finding]

_LIMITS = ("cgroup.cpu", "cgroup.memory", "cgroup.pids")
_LAB = ("program.nft", "net.nftables", "net.bridge", "net.veth", "python.pyroute2")
COMMON = ("root", *_LIMITS, *_LAB, "program.mmdebstrap")
"""Capabilities that every level requires, the most informative ones first. Each level adds its own."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "vagrant": (
        "program.vagrant",
        "vagrant.libvirt",
        "program.dnsmasq",
        "program.nft",
        "net.nftables",
        "program.mmdebstrap",
        "program.qemu",
        "program.mkfs.erofs",
        "program.lz4",
        "libvirt.daemon",
        "libvirt.kvm-group",
    ),
}
"""The requirements of extras, which are not isolation levels: the exit code of the doctor does not depend on them."""


@dataclass(frozen=True, slots=True)
class Optional:
    """A capability that no level requires, and what is lost without it."""

    name: str
    without: str


OPTIONAL: tuple[Optional, ...] = (
    Optional("kvm", "virtual machines are emulated (TCG), 20 to 30 times slower at computing; every figure says so"),
    Optional("program.wrk", "sandbox compare cannot measure throughput"),
    Optional("program.h2load", "sandbox bench cannot send at a fixed rate"),
    Optional("ns.time", "sandboxes share the host's clock offsets"),
    Optional("cgroup.cpuset", "sandboxes cannot be pinned to CPUs"),
    Optional("overlayfs", "Docker falls back to a slower storage driver"),
)


def _docker_daemon(_: Survey) -> Finding:
    from sandbox.host import docker_check  # imported here because levels without Docker do not need it

    return docker_check.daemon()


def _docker_runsc(_: Survey) -> Finding:
    from sandbox.host import docker_check

    return docker_check.runsc()


CHECKS: dict[str, Check] = {
    "root": lambda _: kernel.root(),
    **{f"cgroup.{name}": partial(lambda name, _: kernel.controller(name), name) for name in kernel.CONTROLLERS},
    **{f"ns.{kind}": partial(lambda kind, _: kernel.namespace(kind), kind) for kind in kernel.NAMESPACES},
    "seccomp": lambda _: kernel.seccomp(),
    "overlayfs": lambda _: kernel.overlayfs(),
    "net.bridge": lambda _: kernel.link("bridge"),
    "net.veth": lambda _: kernel.link("veth"),
    "net.nftables": lambda _: kernel.nftables(),
    "net.tun": lambda _: kernel.tun(),
    "docker.daemon": _docker_daemon,
    "docker.runsc": _docker_runsc,
    "libvirt.daemon": lambda _: libvirt.daemon(),
    "libvirt.kvm-group": lambda _: libvirt.kvm_group(),
    "kvm": lambda _: kvm.finding(),
    "vagrant.libvirt": lambda _: vagrant.plugin(),
    **{f"program.{name}": partial(lambda name, _: programs.program(name), name) for name in programs.PROGRAMS},
    **{f"python.{name}": partial(lambda name, _: programs.module(name), name) for name in programs.MODULES},
}
"""Capability to the function that looks for it."""

_REMEMBERED = frozenset(
    name for name in CHECKS if name.startswith("ns.") or name in {"net.bridge", "net.veth", "net.nftables", "overlayfs"}
)
"""Capabilities of the running kernel that are remembered once found, as each check takes a process or two."""


class Survey:
    """One look at the host."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._known = verdicts.recall("kernel", self._key()) or {}

    @staticmethod
    def _key() -> str:
        return f"euid {os.geteuid()}"

    def look(self, name: str) -> Finding:
        """Check one capability, at most once.

        Raises:
            KeyError: there is no capability of that name.
        """
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> Finding:
        looking = CHECKS[name]
        if name in self._known:
            return Finding(name, True, str(self._known[name]))
        try:
            finding = looking(self)
        except Exception as error:  # the host is unknown: any failure of a check is its finding
            return Finding(name, False, f"it could not be checked: {type(error).__name__}: {error}", "report this")
        if finding.ok and name in _REMEMBERED:
            self._known[name] = finding.detail
            verdicts.remember("kernel", self._key(), self._known)
        return finding

    def level(self, required: Iterable[str]) -> list[Finding]:
        """Return the findings on all that a level, or one of `EXTRAS`, requires.

        Without root there is one finding, for little else can be seen.

        Raises:
            KeyError: there is no capability of that name.
        """
        root = self.look("root")
        return [self.look(name) for name in required] if root.ok else [root]
