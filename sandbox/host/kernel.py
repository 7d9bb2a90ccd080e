"""Check capabilities of the running kernel by trying them in a temporary namespace. See namespaces(7), cgroups(7)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from sandbox.host.distribution import remedy
from sandbox.host.finding import Finding
from sandbox.kernel import cgroup

NAMESPACES = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup", "time")
CONTROLLERS = ("cpu", "memory", "pids", "cpuset")
_TIMEOUT = 10.0
_OTHER_KERNEL = "use a kernel or machine that allows it"


def root() -> Finding:
    """Check that we are root, and not just root of a user namespace."""
    if os.geteuid() != 0:
        return Finding("root", False, "not root, which namespaces, cgroups and links need", "run it with sudo")
    try:
        mapped = int(Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2])
    except (OSError, ValueError, IndexError):
        mapped = 2**32 - 1
    if mapped < 2**32 - 1:
        return Finding(
            "root",
            False,
            "root of a user namespace only, which is an unprivileged user on the host",
            "run it on the host",
        )
    return Finding("root", True, "uid 0")


def controller(name: str) -> Finding:
    """Check that a cgroup controller is available for our groups."""
    what = f"cgroup.{name}"
    where = cgroup.read_hierarchy(Path("/proc/mounts").read_text(encoding="utf-8"))
    mount = where.v1.get(name) or (where.v2 if name in where.v2_controllers else None)
    if mount is not None:
        if not os.access(mount, os.W_OK):
            return Finding(what, False, f"{mount} is not writable", "run it on the host, not in a container")
        return Finding(what, True, f"{'v1' if name in where.v1 else 'v2'} ({where.mode}) at {mount}")
    return Finding(what, False, *_no_controller(name, where))


def _no_controller(name: str, where: cgroup.Hierarchy) -> tuple[str, str]:
    """Return why a controller is not available, and how to make it available."""
    try:
        lines = [line.split() for line in Path("/proc/cgroups").read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return "this kernel has no cgroups", _OTHER_KERNEL
    enabled = {fields[0] for fields in lines if fields[3] == "1"}
    if name not in enabled:
        return (
            f"the controller {name} is disabled in this kernel",
            f"boot with cgroup_enable={name}, or use a kernel that has it",
        )
    if where.v2 is None and not where.v1:
        return "no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup"
    if where.v1:
        return (
            f"the controller {name} is not mounted",
            f"mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} none /sys/fs/cgroup/{name}",
        )
    return f"the controller {name} is not delegated to this cgroup", "run it on the host, not in a container"


def _try(argv: list[str]) -> str | None:
    """Run a command. Return None if it succeeds, else the last line of its standard error."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError:
        return f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not finish within {_TIMEOUT:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"{argv[0]} exited with {done.returncode}"


def namespace(kind: str) -> Finding:
    """Check that a namespace of this kind can be created."""
    name = f"ns.{kind}"
    words = _try(["unshare", f"--{kind}", "--fork", "true"])
    if words is None:
        return Finding(name, True, "can be created")
    limit = Path(f"/proc/sys/user/max_{ {'mount': 'mnt'}.get(kind, kind) }_namespaces")
    try:
        if limit.read_text(encoding="ascii").strip() == "0":
            return Finding(name, False, f"{limit} is 0", f"sysctl -w user.{limit.name}=10000")
    except OSError:
        return Finding(name, False, f"this kernel has no {kind} namespaces", _OTHER_KERNEL)
    if kind == "user":  # user_namespaces(7): EPERM in a chroot; some distributions forbid them by AppArmor or sysctls
        return Finding(name, False, words, "leave the chroot or container, or lift the policy that forbids them")
    return Finding(name, False, words, _OTHER_KERNEL)


def seccomp() -> Finding:
    """Check that seccomp filters can return an error, see seccomp(2)."""
    try:
        actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii").split()
    except OSError:
        return Finding("seccomp", False, "this kernel has no seccomp filters", _OTHER_KERNEL)
    if "errno" not in actions:
        return Finding("seccomp", False, "this kernel's seccomp filters cannot return an error", _OTHER_KERNEL)
    return Finding("seccomp", True, " ".join(actions))


_OVERLAY = (
    "mount -t tmpfs sandbox-doctor /tmp && mkdir /tmp/l /tmp/u /tmp/w && "
    "mount -t overlay -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w sandbox-doctor /tmp"
)


def overlayfs() -> Finding:
    """Check that an overlay can be mounted, in a temporary mount namespace."""
    words = _try(["unshare", "--mount", "--propagation", "private", "sh", "-c", _OVERLAY])
    if words is None:
        return Finding("overlayfs", True, "can be mounted")
    return Finding("overlayfs", False, words, "modprobe overlay, or use a kernel that has it")


def link(kind: str) -> Finding:
    """Check that a network link of this kind can be added, in a temporary network namespace."""
    name = f"net.{kind}"
    if shutil.which("ip") is None:
        return Finding(name, False, "it cannot be tried, because ip is not installed", remedy("program.ip"))
    words = _try(["unshare", "--net", "ip", "link", "add", "sbxprobe", "type", kind])
    if words is None:
        return Finding(name, True, "can be added")
    return Finding(name, False, words, f"modprobe {kind}, or use a kernel that has it")


def nftables() -> Finding:
    """Check that nft is installed and the kernel accepts its rules."""
    if shutil.which("nft") is None:
        return Finding("net.nftables", False, "nft is not installed", remedy("program.nft"))
    words = _try(["unshare", "--net", "nft", "add", "table", "inet", "sbxprobe"])
    if words is None:
        return Finding("net.nftables", True, "accepts rules")
    return Finding("net.nftables", False, words, "modprobe nf_tables, or use a kernel that has it")


def tun() -> Finding:
    """Check that tap devices can be opened, see Documentation/networking/tuntap.rst."""
    device = Path("/dev/net/tun")
    try:
        if stat.S_ISCHR(device.stat().st_mode):
            with device.open("r+b", buffering=0):
                return Finding("net.tun", True, str(device))
    except FileNotFoundError:
        return Finding("net.tun", False, f"there is no {device}", "modprobe tun")
    except OSError as error:
        return Finding("net.tun", False, f"{device}: {error.strerror}", "modprobe tun")
    return Finding("net.tun", False, f"{device} is not a device", "modprobe tun")
