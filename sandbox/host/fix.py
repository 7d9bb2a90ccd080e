"""Install and start what `sandbox doctor` finds missing, on Debian and its derivatives; elsewhere, only give advice.

Each step acts only if something is missing, so a second run does nothing.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import invalidate_caches, metadata
from itertools import chain
from pathlib import Path
from typing import Any

from sandbox.errors import EngineError, SandboxError, UnavailableError
from sandbox.host import apt, daemons, dockerd, libvirt, vagrant
from sandbox.host.checks import COMMON, EXTRAS, OPTIONAL, Survey
from sandbox.host.distribution import OPTIONAL_PACKAGES, PACKAGES, distribution, systemd
from sandbox.host.docker import Engine
from sandbox.host.docker_check import registered
from sandbox.host.finding import Finding
from sandbox.host.programs import which
from sandbox.host.sockets import listens
from sandbox.state.store import named_lock

Progress = Callable[[str], None]

DISTRIBUTION_NAME = "sandbox-manager"


@dataclass
class Outcome:
    """The result of `fix`, as lines for people.

    Attributes:
        done: what was changed; empty if there was nothing to do.
        advice: what is left to the administrator.
        failed: steps that failed; later steps were still tried.
    """

    done: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def fix(requirements: Mapping[str, Iterable[str]], progress: Progress) -> Outcome:
    """Install and start what is missing.

    Args:
        requirements: the capabilities that each level needs beside those that every level needs.
        progress: called with a line for each step.

    Raises:
        UnavailableError: we are not root.
        StoreError: the state directory cannot be written.
    """
    if os.geteuid() != 0:
        raise UnavailableError("--fix needs root", "sudo sandbox doctor --fix")
    outcome = Outcome()
    missing = lacking(requirements)
    if not distribution().debian:
        outcome.advice += [f"{finding.detail}: {finding.remedy}" for finding in missing]
        return outcome
    packages = partial(_packages, [finding.name for finding in missing])
    with named_lock("doctor"):
        for step in (packages, _kvm_group, _docker, _runsc, _libvirt, _binding):
            before = len(outcome.done)
            try:
                step(outcome, progress)
            except SandboxError as error:  # other levels may still become available
                outcome.failed.append(str(error))
            for line in outcome.done[before:]:
                progress(line)
    return outcome


def stop(progress: Progress) -> list[str]:
    """Stop the daemons that `fix` started on this host, and no others.

    Returns:
        A line for each daemon.

    Raises:
        EngineError: a daemon does not end.
    """
    done = []
    with named_lock("doctor"):
        for name in daemons.ours():
            if daemons.stop(name):
                done.append(f"stopped {name}")
                progress(done[-1])
    return done


def lacking(requirements: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Return the missing capabilities, both required and optional ones."""
    survey = Survey()
    names = dict.fromkeys([*COMMON, *chain.from_iterable([*requirements.values(), *EXTRAS.values()])])
    names |= dict.fromkeys(item.name for item in OPTIONAL if item.name.startswith("program."))
    return [finding for name in names if not (finding := survey.look(name)).ok]


def wanted_packages(names: list[str]) -> list[str]:
    """Return the packages that provide capabilities, except those whose program is installed and only does not run."""
    wanted: dict[str, None] = {}
    for name in names:
        if name not in PACKAGES or _installed(name):
            continue
        if name == "python.libvirt":
            wanted |= dict.fromkeys(_binding_packages())
        else:
            wanted |= dict.fromkeys(PACKAGES[name] + OPTIONAL_PACKAGES.get(name, ()))
    return list(wanted)


def _installed(name: str) -> bool:
    if name == "docker.daemon":
        return which("dockerd") is not None  # it may be from Docker's own packages
    if name == "docker.runsc":
        return which("runsc") is not None
    if name == "libvirt.daemon":
        return which("virsh") is not None and _libvirt_daemon() is not None
    if name == "vagrant.libvirt":
        return vagrant.from_hashicorp()  # HashiCorp's Vagrant ignores Debian's plugin
    return False


def _packages(names: list[str], outcome: Outcome, progress: Progress) -> None:
    if "net.bridge" in names and which("ip") is None:
        names.append("program.ip")
    if "net.nftables" in names and which("nft") is None:
        names.append("program.nft")
    packages = wanted_packages(names)
    if not packages:
        return
    apt.update(progress)
    found = apt.available(packages)
    optional = {package for extra in OPTIONAL_PACKAGES.values() for package in extra}
    outcome.advice += [
        f"{distribution().name} has no package {package}: install it from upstream"
        for package in packages
        if package not in found and package not in optional
    ]
    if found:
        apt.install(found, progress)
        outcome.done.append("installed " + " ".join(found))


def _kvm_group(outcome: Outcome, progress: Progress) -> None:
    """Give the device to the group kvm, as udev does elsewhere; libvirt's user for QEMU is a member of the group."""
    del progress
    if libvirt.kvm_group().ok:
        return
    found = libvirt.KVM_DEVICE.stat()
    try:
        group = grp.getgrnam("kvm").gr_gid
    except KeyError:
        outcome.advice.append(f"{libvirt.KVM_DEVICE} should belong to the group kvm, but there is no such group")
        return
    if found.st_uid != 0 or found.st_gid != 0:
        outcome.advice.append(f"{libvirt.KVM_DEVICE} belongs to another user or group; {libvirt.kvm_group().remedy}")
        return
    os.chown(libvirt.KVM_DEVICE, 0, group)
    libvirt.KVM_DEVICE.chmod(0o660)
    outcome.done.append(
        f"gave {libvirt.KVM_DEVICE} to the group kvm, as udev does, so that libvirt starts machines quickly"
    )


def _docker(outcome: Outcome, progress: Progress) -> None:
    finding = Survey().look("docker.daemon")
    if finding.ok or which("dockerd") is None:
        return
    if not dockerd.chosen():
        outcome.advice.append(f"{finding.detail}: {finding.remedy}")
    elif systemd():
        progress("starting docker")
        outcome.done.append(_systemctl("docker"))
    else:
        progress("starting dockerd")
        outcome.done.append(dockerd.start())


def _runsc(outcome: Outcome, progress: Progress) -> None:
    if which("runsc") is None or not Survey().look("docker.daemon").ok or registered(Engine()) is not None:
        return
    progress("registering the runtime runsc with dockerd")
    done, advice = dockerd.register()
    outcome.done += [done] if done else []
    outcome.advice += [advice] if advice else []


def _libvirt_daemon() -> str | None:
    """Return the daemon that serves qemu:///system: the monolithic one, or else the modular one."""
    return next((name for name in ("libvirtd", "virtqemud") if which(name)), None)


def _libvirt(outcome: Outcome, progress: Progress) -> None:
    name = _libvirt_daemon()
    if libvirt.daemon().ok or name is None or which("virsh") is None:
        return
    progress(f"starting {name}")
    if systemd():
        outcome.done.append(_systemctl(name if name == "libvirtd" else f"{name}.socket"))
        if which("virtlogd") is not None and not listens(libvirt.VIRTLOGD_SOCKET):
            outcome.done.append(_systemctl("virtlogd.socket"))
        return
    if which("virtlogd") is not None and not listens(libvirt.VIRTLOGD_SOCKET):
        process = daemons.start("virtlogd", ["virtlogd"], ready=lambda: listens(libvirt.VIRTLOGD_SOCKET))
        outcome.done.append(f"started virtlogd (pid {process.pid}, log {daemons.log_path('virtlogd')})")
    if libvirt.daemon().ok:  # it was running, and only lacked virtlogd
        return
    process = daemons.start(name, [name], ready=lambda: libvirt.daemon().ok)
    outcome.done.append(f"started {name} (pid {process.pid}, log {daemons.log_path(name)})")


def _systemctl(unit: str) -> str:
    done = subprocess.run(
        ["systemctl", "enable", "--now", unit], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        raise EngineError(f"systemctl enable --now {unit} failed: {words[-1]}", f"journalctl -u {unit}")
    return f"enabled and started {unit}"


def _system_interpreter() -> bool:
    """Return whether this is the distribution's interpreter, outside any virtual environment."""
    return sys.prefix == sys.base_prefix == "/usr"


def _binding_packages() -> list[str]:
    if _system_interpreter():
        return ["python3-libvirt"]
    packages = [package for package in PACKAGES["python.libvirt"] if package != "python3-dev"]
    if sys.base_prefix == "/usr":  # other interpreters come with their own headers
        packages.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    return packages


def _owner_of(directory: Path) -> dict[str, Any]:
    """Return arguments that run a subprocess as a directory's owner, so that root creates no files in a checkout."""
    found = directory.stat()
    if found.st_uid == os.geteuid():
        return {}
    home = pwd.getpwuid(found.st_uid).pw_dir
    return {
        "user": found.st_uid,
        "group": found.st_gid,
        "extra_groups": [],
        "env": {**os.environ, "HOME": home},
        "cwd": "/",
    }


def _binding(outcome: Outcome, progress: Progress) -> None:
    """Build libvirt's Python binding in this environment, compiled against this host's libvirt."""
    invalidate_caches()
    if Survey().look("python.libvirt").ok:
        return
    if _system_interpreter():
        outcome.advice.append("the Python module libvirt is missing: apt-get install python3-libvirt")
        return
    if (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists() and sys.prefix == sys.base_prefix:
        outcome.advice.append("this Python is managed by the distribution: install sandbox in a virtual environment")
        return
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in metadata.requires(DISTRIBUTION_NAME) or []
        if requirement.replace('"', "'").replace(" ", "").endswith("extra=='vm'")
    ]
    if not wanted or shutil.which("pkg-config") is None:
        outcome.advice.append("the Python module libvirt cannot be built here: install sandbox with its extra vm")
        return
    progress(f"pip install {' '.join(wanted)}")
    argv = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *wanted]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **_owner_of(Path(sys.prefix))
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise EngineError(
            f"pip could not install {' '.join(wanted)}: {lines[-1].strip() if lines else 'no reason given'}",
            "try: " + " ".join(argv),
        )
    invalidate_caches()
    outcome.done.append(f"installed {' '.join(wanted)} in {sys.prefix}")
