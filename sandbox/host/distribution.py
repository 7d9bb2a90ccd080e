"""Which distribution this is, and what its packages are called."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FIX = "sandbox doctor --fix"

PACKAGES: dict[str, tuple[str, ...]] = {
    "program.mmdebstrap": ("mmdebstrap",),
    "program.nft": ("nftables",),
    "program.ip": ("iproute2",),
    "program.wrk": ("wrk",),
    "program.h2load": ("nghttp2-client",),
    "program.qemu": ("qemu-system-x86", "qemu-utils"),
    "program.mkfs.erofs": ("erofs-utils",),
    "program.lz4": ("lz4",),
    "program.vagrant": ("vagrant", "vagrant-libvirt"),
    "docker.daemon": ("docker.io",),
    "docker.runsc": ("runsc",),
    "libvirt.daemon": ("libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    "python.libvirt": ("gcc", "pkg-config", "libvirt-dev", "python3-dev"),
}
"""Capability to the Debian packages that provide it."""

OPTIONAL_PACKAGES: dict[str, tuple[str, ...]] = {"libvirt.daemon": ("libvirt-daemon-log",)}
"""The same, for packages that only some releases have (virtlogd is part of libvirt-daemon before Debian 13)."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What /etc/os-release says, see os-release(5).

    Attributes:
        name: for people.
        debian: whether it is Debian, Ubuntu or made from one of them, with apt-get.
    """

    name: str
    debian: bool


def read_os_release(text: str) -> dict[str, str]:
    """Parse os-release(5): lines of NAME=value, the value perhaps quoted."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            found[name] = value.strip("\"'")
    return found


@cache
def distribution() -> Distribution:
    """This host's distribution."""
    fields: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            fields = read_os_release(Path(path).read_text(encoding="utf-8"))
            break
        except (OSError, UnicodeDecodeError):
            continue
    family = {fields.get("ID", ""), *fields.get("ID_LIKE", "").split()}
    debian = bool(family & {"debian", "ubuntu"}) and shutil.which("apt-get") is not None
    return Distribution(fields.get("PRETTY_NAME", "an unknown distribution"), debian)


def systemd() -> bool:
    """Whether systemd is this host's init, see sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def remedy(capability: str) -> str:
    """What installs a capability: our own command where it can, else the names to look for."""
    if distribution().debian:
        return FIX
    return "install what Debian calls " + ", ".join(PACKAGES[capability])
