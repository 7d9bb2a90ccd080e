"""Check libvirt, and a setting of the host that slows its QEMU driver down."""

from __future__ import annotations

import grp
import stat
import subprocess
from pathlib import Path

from sandbox.host.distribution import remedy
from sandbox.host.finding import Finding
from sandbox.host.programs import which
from sandbox.host.sockets import listens

URI = "qemu:///system"
VIRTLOGD_SOCKET = Path("/run/libvirt/virtlogd-sock")
KVM_DEVICE = Path("/dev/kvm")
_TIMEOUT = 10.0


def daemon() -> Finding:
    """Check that libvirt's QEMU driver replies, through virsh, which unlike the library can be given a timeout."""
    name = "libvirt.daemon"
    virsh = which("virsh")
    if virsh is None:
        return Finding(name, False, "libvirt is not installed (no virsh)", remedy(name))
    try:
        done = subprocess.run(
            [virsh, "-q", "-c", URI, "version", "--daemon"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"libvirt did not answer within {_TIMEOUT:.0f} s", "restart libvirtd")
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line]
        words = lines[-1].removeprefix("error: ") if lines else f"virsh exited with {done.returncode}"
        return Finding(name, False, f"libvirt does not answer: {words}", remedy(name))
    if which("virtlogd") is not None and not listens(VIRTLOGD_SOCKET):
        return Finding(
            name,
            False,
            f"virtlogd does not answer on {VIRTLOGD_SOCKET}: no machine starts",
            remedy(name),
        )
    return Finding(name, True, read_version(done.stdout))


def read_version(text: str) -> str:
    """Extract the versions of the daemon and QEMU from the output of `virsh version --daemon`."""
    found = {}
    for line in text.splitlines():
        kind, separator, version = line.partition(": ")
        if separator:
            found[kind] = version
    daemon_version = found.get("Running against daemon", "of unknown version")
    return f"libvirt {daemon_version}, {found.get('Running hypervisor', 'QEMU')}"


def kvm_group() -> Finding:
    """Check that the user as which libvirt runs QEMU may open /dev/kvm.

    If only root may open it, libvirt probes QEMU once as root with KVM and once as its own user without, discards the
    first result, and starts over: more than a minute for each start of a machine.
    """
    name = "libvirt.kvm-group"
    try:
        found = KVM_DEVICE.stat()
    except OSError:
        return Finding(name, True, f"there is no {KVM_DEVICE}")
    if found.st_mode & 0o006 == 0o006:
        return Finding(name, True, f"{KVM_DEVICE} is open to all")
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    if found.st_gid != 0 and found.st_mode & 0o060 == 0o060:
        return Finding(name, True, f"{KVM_DEVICE} is open to the group {group}")
    mode = f"root:{group} {stat.S_IMODE(found.st_mode):04o}"
    return Finding(
        name,
        False,
        f"{KVM_DEVICE} is {mode}, so libvirt takes more than a minute to start a machine",
        "chgrp kvm /dev/kvm && chmod 660 /dev/kvm",
    )
