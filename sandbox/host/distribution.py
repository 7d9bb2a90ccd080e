"""The distribution of this host, and the names of its packages."""

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
    "program.vagrant": ("vagrant",),
    "vagrant.libvirt": ("vagrant-libvirt",),
    "program.dnsmasq": ("dnsmasq-base",),
    "docker.daemon": ("docker.io",),
    "docker.runsc": ("runsc",),
    "libvirt.daemon": ("libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    "python.libvirt": ("gcc", "pkg-config", "libvirt-dev", "python3-dev"),
}
"""The Debian packages that provide a capability."""

OPTIONAL_PACKAGES: dict[str, tuple[str, ...]] = {
    "libvirt.daemon": ("libvirt-daemon-log",),
    "program.dnsmasq": ("libvirt-daemon-driver-network", "libvirt-daemon-driver-storage"),
}
"""Further packages that only some releases have (before Debian 13, all three are part of libvirt-daemon)."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution as described by /etc/os-release, see os-release(5).

    Attributes:
        name: its name, for people.
        debian: whether it is Debian, Ubuntu or a derivative of one, and has apt-get.
    """

    name: str
    debian: bool


def read_os_release(text: str) -> dict[str, str]:
    """Parse the text of an os-release(5) file: lines of NAME=value, perhaps with quotes."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            found[name] = value.strip("\"'")
    return found


@cache
def distribution() -> Distribution:
    """Return this host's distribution."""
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
    """Return whether systemd is this host's init, see sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def remedy(capability: str) -> str:
    """Say how to install a capability: by our own command if it can, else by the names of the packages."""
    if distribution().debian:
        return FIX
    return "install the equivalent of Debian's " + ", ".join(PACKAGES[capability])
