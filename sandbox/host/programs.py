"""Programs on PATH and Python modules in this environment."""

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
}
"""Name to the executables that make it up."""

MODULES = ("docker", "libvirt", "paramiko", "pyroute2")

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def which(name: str) -> str | None:
    """The path of an executable; the administrator's directories are searched even if PATH leaves them out."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)


def program(name: str) -> Finding:
    """Whether a program is installed."""
    what = f"program.{name}"
    absent = [executable for executable in PROGRAMS[name] if which(executable) is None]
    if not absent:
        return Finding(what, True, ", ".join(which(executable) or "" for executable in PROGRAMS[name]))
    reason = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    if name == "vagrant" and distribution().debian:  # large, and no level uses it: never installed unasked
        return Finding(what, False, reason, "apt-get install vagrant vagrant-libvirt")
    return Finding(what, False, reason, remedy(what))


def module(name: str) -> Finding:
    """Whether a Python module can be imported; it is not imported, for that may take a fifth of a second."""
    what = f"python.{name}"
    if name == "libvirt":
        return _libvirt_binding(what)
    if util.find_spec(name) is None:
        return Finding(
            what, False, f"the Python module {name} is not installed", f"{sys.executable} -m pip install {name}"
        )
    return Finding(what, True, "installed")


def _libvirt_binding(what: str) -> Finding:
    """The binding's C part is loaded: a binding without its libvirt.so looks installed and fails on import."""
    if util.find_spec("libvirt") is None:
        return Finding(what, False, "the Python module libvirt is not installed", remedy(what))
    try:
        import_module("libvirtmod")
    except ImportError as error:
        fix = FIX if distribution().debian else "reinstall libvirt and libvirt-python"
        return Finding(what, False, f"the Python module libvirt does not load: {error}", fix)
    return Finding(what, True, "loads")
