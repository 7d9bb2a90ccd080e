"""Check for programs on PATH and Python modules in this environment."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module, util

from sandbox.host.distribution import FIX, distribution, remedy
from sandbox.host.finding import Finding

PROGRAMS: dict[str, tuple[str, ...]] = {
    "mmdebstrap": ("mmdebstrap",),
    "nft": ("nft",),
    "ip": ("ip",),
    "wrk": ("wrk",),
    "h2load": ("h2load",),
    "qemu": ("qemu-system-x86_64", "qemu-img"),
    "mkfs.erofs": ("mkfs.erofs",),
    "lz4": ("lz4",),
    "vagrant": ("vagrant",),
    "dnsmasq": ("dnsmasq",),
}
"""The executables of a program."""

MODULES = ("docker", "libvirt", "paramiko", "pyroute2")

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def which(name: str) -> str | None:
    """Find an executable on PATH or, even if PATH lacks them, in the administrator's directories."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)


def program(name: str) -> Finding:
    """Check that a program is installed."""
    what = f"program.{name}"
    absent = [executable for executable in PROGRAMS[name] if which(executable) is None]
    if not absent:
        return Finding(what, True, ", ".join(which(executable) or "" for executable in PROGRAMS[name]))
    reason = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    return Finding(what, False, reason, remedy(what))


def module(name: str) -> Finding:
    """Check that a Python module is installed, without importing it, which may take 0.2 s."""
    what = f"python.{name}"
    if name == "libvirt":
        return _libvirt_binding(what)
    if util.find_spec(name) is None:
        return Finding(
            what, False, f"the Python module {name} is not installed", f"{sys.executable} -m pip install {name}"
        )
    return Finding(what, True, "installed")


def _libvirt_binding(what: str) -> Finding:
    """Load the C part of the libvirt binding: without libvirt.so it is installed, but its import fails."""
    if util.find_spec("libvirt") is None:
        return Finding(what, False, "the Python module libvirt is not installed", remedy(what))
    try:
        import_module("libvirtmod")
    except ImportError as error:
        fix = FIX if distribution().debian else "reinstall libvirt and libvirt-python"
        return Finding(what, False, f"the Python module libvirt cannot be loaded: {error}", fix)
    return Finding(what, True, "can be loaded")
