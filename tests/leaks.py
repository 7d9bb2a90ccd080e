"""Counts what sandboxes could leave behind on a host, each kind by asking the kernel or the engine, not our store.

A snapshot before and one after; what is new is a leak. `tests/integration/test_leaks.py` makes one leak of each kind
on purpose and shows that it is seen.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sandbox.isolation import keeper
from sandbox.kernel import nftables
from sandbox.network import lab, publish, vagrant
from sandbox.state import paths
from sandbox.state.record import APP_FOLDER

_KEPT = re.compile(rf"/[0-9a-f]{{12}}/{keeper.LOCK}( \(deleted\))?")
"""The lock that each keeper holds, in the directory of its sandbox, be that there or not."""

Snapshot = dict[str, frozenset[str]]

_ZYGOTE = "sandbox.kernel import zygote"
"""In the command line of a zygote and of the child that it has made ahead."""

_SETTLE = 10.0
"""Seconds that the kernel gets to finish what it does behind our back: links of dead namespaces, cgroups."""


def processes() -> frozenset[str]:
    """Processes of sandboxes: in one of our control groups, or QEMUs, inits, zygotes and helpers named after us."""
    found: set[str] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text(encoding="utf-8", errors="replace")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            state = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        ours = re.search(r"/sandbox/[0-9a-f]{12}", groups) or re.search(r"sbx-[0-9a-f]{12}", command)
        inside = command.startswith(("/usr/bin/tini", "/opt/sandbox")) or "/opt/sandbox/" in command
        if "/isolation/keeper.py " in command:
            continue  # `keepers` has them; one becomes this program in the middle of its life, and is no other process
        if state != "Z" and (ours or inside or _ZYGOTE in command):
            found.add(f"{entry.name} {' '.join(command.split())[:160]}")
    return frozenset(found)


def keepers() -> frozenset[str]:
    """Processes that keep a sandbox's output, or have yet to do something after its end."""
    found: set[str] = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if _KEPT.search(target := os.readlink(link)):
                found.add(f"{link.parts[2]} {target}")
    return frozenset(found)


def terminals() -> frozenset[str]:
    """Terminals that this very process holds (pty(7)): others on the host come and go with whoever works there."""
    return frozenset(one for one in descriptors() if re.search(r" -> /dev/(pts/|ptmx)", one))


def mounts() -> frozenset[str]:
    """Mount points below the state directory, and named network namespaces."""
    state = str(paths.state_dir())
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        targets = [line.split()[4] for line in stream]
    return frozenset(one for one in targets if one.startswith((state + "/", "/run/netns/sbx")))


def network_namespaces() -> frozenset[str]:
    """Named network namespaces."""
    directory = Path("/run/netns")
    return frozenset(entry.name for entry in directory.iterdir()) if directory.is_dir() else frozenset()


def links() -> frozenset[str]:
    """Every link of the host; their names without Docker's random part count too."""
    return frozenset(name for _, name in socket.if_nameindex())


def addresses() -> frozenset[str]:
    """Addresses of the host on the lab bridge."""
    if not os.path.exists(f"/sys/class/net/{lab.BRIDGE}"):
        return frozenset()
    from sandbox.kernel import netns

    with netns.Links() as handle:
        return frozenset(handle.addresses(lab.BRIDGE))


def _table(name: str) -> set[str]:
    """A table of nftables and what is in it, a line each."""
    if not nftables.table_exists("inet", name):
        return set()
    text = subprocess.run(["nft", "list", "table", "inet", name], capture_output=True, text=True, check=False).stdout
    return {line.strip() for line in text.splitlines() if line.strip()}


def published() -> frozenset[str]:
    """Ports of the host that lead into sandboxes: the rules, and the switch of the bridge that they need."""
    found = _table(publish.TABLE)
    switch = Path(f"/proc/sys/net/ipv4/conf/{lab.BRIDGE}/route_localnet")
    if switch.exists() and switch.read_text(encoding="ascii").strip() != "0":
        found.add("route_localnet")
    return frozenset(found)


def rules() -> frozenset[str]:
    """The nftables tables of the lab and of Vagrant's network and what is in them, and our rule in iptables."""
    found = _table(lab.TABLE) | _table(vagrant.TABLE)
    if shutil.which("iptables"):
        text = subprocess.run(["iptables", "-w", "-S"], capture_output=True, text=True, check=False).stdout
        found.update(line for line in text.splitlines() if lab.BRIDGE in line)
    return frozenset(found)


def cgroups() -> frozenset[str]:
    """Control groups below `sandbox/`, in every hierarchy; the freezer's, of a sandbox that is paused, among them."""
    found: set[str] = set()
    for root in {*Path("/sys/fs/cgroup").glob("*/sandbox"), *Path("/sys/fs/cgroup").glob("sandbox")}:
        found.update(str(entry) for entry in root.rglob("*") if entry.is_dir())
    return frozenset(found)


def _docker(*arguments: str) -> frozenset[str]:
    if not shutil.which("docker"):
        return frozenset()
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=60)
    return frozenset(done.stdout.split("\n")) - {""} if done.returncode == 0 else frozenset()


def containers() -> frozenset[str]:
    """Every container, running or not."""
    return _docker("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}")


def docker_networks() -> frozenset[str]:
    """Docker's networks."""
    return _docker("network", "ls", "--format", "{{.Name}}")


def docker_volumes() -> frozenset[str]:
    """Docker's volumes."""
    return _docker("volume", "ls", "--format", "{{.Name}}")


def _virsh(*arguments: str) -> list[str]:
    """The first word of each line that virsh answers with."""
    if not shutil.which("virsh") or not os.path.exists("/run/libvirt/libvirt-sock"):
        return []
    argv = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    return [line.split()[0] for line in done.stdout.splitlines() if line.split()] if done.returncode == 0 else []


def domains() -> frozenset[str]:
    """libvirt's domains, running or only defined."""
    return frozenset(_virsh("list", "--all", "--name"))


def libvirt_networks() -> frozenset[str]:
    """libvirt's networks, active or only defined."""
    return frozenset(_virsh("net-list", "--all", "--name"))


def libvirt_volumes() -> frozenset[str]:
    """What is in libvirt's storage pool, where Vagrant's machines have their disks."""
    return frozenset(_virsh("vol-list", "--pool", vagrant.POOL))


def state_files() -> frozenset[str]:
    """Everything in the state directory but images, locks and what was learnt about the host."""
    found: set[str] = set()
    for directory in (paths.sandboxes_dir(), paths.names_dir(), paths.addresses_dir()):
        if directory.is_dir():
            found.update(str(entry) for entry in directory.iterdir())
    if paths.vagrant_dir().exists():
        found.add(str(paths.vagrant_dir()))
    if paths.host_dir().is_dir() and not any(paths.addresses_dir().glob("*")):
        # Which levels were used is known for as long as anybody uses the lab, and forgotten with it.
        found.update(str(entry) for entry in paths.host_dir().glob("used-*"))
    return frozenset(found)


def claimed_ports() -> frozenset[str]:
    """Ports of the host that are some sandbox's, published or not."""
    directory = paths.ports_dir()
    return frozenset(entry.name for entry in directory.iterdir()) if directory.is_dir() else frozenset()


def staged_files() -> frozenset[str]:
    """Directories with an application's files, whole or half copied."""
    return frozenset(str(entry) for entry in paths.sandboxes_dir().glob(f"*/{APP_FOLDER}*"))


def half_images() -> frozenset[str]:
    """Temporary files of image builds."""
    directory = paths.images_dir()
    if not directory.is_dir():
        return frozenset()
    return frozenset(entry.name for entry in directory.iterdir() if entry.name.startswith((".", "tmp")))


def ports() -> frozenset[str]:
    """TCP ports that the host listens on."""
    found: set[str] = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN, include/net/tcp_states.h
                found.add(f"{name} {fields[1]}")
    return frozenset(found)


def descriptors() -> frozenset[str]:
    """Descriptors of this very process, but for those of the test runner's own churn."""
    found: set[str] = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} -> {os.readlink(entry)}")
        except OSError:
            continue
    return frozenset(one for one in found if "/proc/" not in one)


KINDS: dict[str, Callable[[], frozenset[str]]] = {
    "processes": processes,
    "mounts": mounts,
    "network namespaces": network_namespaces,
    "links": links,
    "addresses": addresses,
    "rules": rules,
    "cgroups": cgroups,
    "containers": containers,
    "docker networks": docker_networks,
    "docker volumes": docker_volumes,
    "domains": domains,
    "libvirt networks": libvirt_networks,
    "libvirt volumes": libvirt_volumes,
    "state files": state_files,
    "staged files": staged_files,
    "claimed ports": claimed_ports,
    "published": published,
    "keepers": keepers,
    "terminals": terminals,
    "half images": half_images,
    "ports": ports,
}


def snapshot() -> Snapshot:
    """What there is now, by kind."""
    return {kind: look() for kind, look in KINDS.items()}


def delta(before: Snapshot, after: Snapshot) -> dict[str, list[str]]:
    """What is new, by kind; empty when nothing is."""
    return {kind: sorted(after[kind] - before[kind]) for kind in KINDS if after[kind] - before[kind]}


def leaked(before: Snapshot, settle: float = _SETTLE) -> dict[str, list[str]]:
    """What is new since `before` and stays new for `settle` seconds."""
    deadline = time.monotonic() + settle
    while True:
        new = delta(before, snapshot())
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.2)
