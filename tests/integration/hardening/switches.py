"""Takes one item of the hardening away, in the process that makes the sandbox: for the tests alone.

Each switch leaves everything else as it is. Where an item can only be missed together with another one that stands in
front of it, the case in `cases` names that other one as its base, and it is down in the comparison too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.isolation.base import environment as environment_asked_for
from sandbox.isolation.local import driver
from sandbox.isolation.local import sandbox as local
from sandbox.kernel import (
    caps,
    cgroup,
    enter,
    ifconfig,
    rootfs,
    seccomp,
    syscalls,
    walls,
)
from sandbox.lifecycle import start
from sandbox.network import lab
from sandbox.spec import SandboxSpec
from tools.seccomp import compiler, policy

Switch = Callable[[pytest.MonkeyPatch], None]
MS_SLAVE = 1 << 19
SPARED = 9


def _nothing(*arguments: Any, **named: Any) -> None:
    """In the place of what is taken away."""


# Users and privileges.


def same_users(patch: pytest.MonkeyPatch) -> None:
    """Root inside is root outside."""
    patch.setattr(driver, "MAP_BASE", 0)


def setgroups_allowed(patch: pytest.MonkeyPatch) -> None:
    def map_ids(pid: int, base: int) -> None:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {base} {enter.MAPPED_COUNT}\n", encoding="ascii")

    patch.setattr(enter, "map_ids", map_ids)


def new_privileges(patch: pytest.MonkeyPatch) -> None:
    """Without no_new_privs the filter needs CAP_SYS_ADMIN, so that it comes first here."""

    def confine(uid: int, program: bytes) -> None:
        buffer = ctypes.create_string_buffer(program, len(program))
        header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
        if ctypes.PyDLL(None).prctl(22, ctypes.c_ulong(2), header, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(0, "PR_SET_SECCOMP")
        caps.drop_bounding()
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        caps.clear()

    patch.setattr(walls, "confine", confine)


def bounding_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(caps, "drop_bounding", lambda: caps._prctl(caps._PR_SET_SECUREBITS, caps.SECUREBITS))


def no_securebits(patch: pytest.MonkeyPatch) -> None:
    """The bit that keeps the permitted set over a change of user stays, or there would be nothing to set others by."""
    patch.setattr(caps, "SECUREBITS", 1 << 2)


def inheritable_kept(patch: pytest.MonkeyPatch) -> None:
    """All of what is permitted is inheritable, the other sets are emptied."""

    def clear() -> None:
        _capset(inheritable=_permitted())

    patch.setattr(caps, "clear", clear)
    bounding_full(patch)


def ambient_kept(patch: pytest.MonkeyPatch) -> None:
    """Ambient capabilities are what survives an exec of a user other than root, in three of the sets."""

    def clear() -> None:
        held = _permitted()
        _capset(effective=held, permitted=held, inheritable=held)
        raise_ambient = 2
        for capability in range(41):
            if held >> capability & 1:
                caps._prctl(caps._PR_CAP_AMBIENT, raise_ambient, capability)

    patch.setattr(caps, "clear", clear)
    patch.setattr(caps, "SECUREBITS", 1 << 2)
    bounding_full(patch)


def _permitted() -> int:
    return caps.status()["CapPrm"]


def _capset(effective: int = 0, permitted: int = 0, inheritable: int = 0) -> None:
    words = []
    for shift in (0, 32):
        words += [number >> shift & 0xFFFFFFFF for number in (effective, permitted, inheritable)]
    header = ctypes.create_string_buffer(struct.pack("=Ii", caps._CAPABILITY_VERSION_3, 0))
    if caps._libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *words), 24)):
        raise OSError(ctypes.get_errno(), "capset")


# System calls.


def no_filter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(seccomp, "install", _nothing)


def passes(name: str) -> Switch:
    """This one call passes the filter."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(policy, "ALLOWED", policy.ALLOWED | {name})
        patch.setattr(policy, "NOT_IMPLEMENTED", policy.NOT_IMPLEMENTED - {name})
        patch.setattr(compiler, "CHECKED", {key: value for key, value in compiler.CHECKED.items() if key != name})
        program = compiler.program(os.uname().machine)
        patch.setattr(seccomp, "build", lambda: program)

    return switch


# Files.


def old_root_stays(patch: pytest.MonkeyPatch) -> None:
    """The old root is not detached after pivot_root(2)."""
    patch.setattr(rootfs, "umount", _nothing)


def mounts_arrive(patch: pytest.MonkeyPatch) -> None:
    """Propagation is that of a new namespace of less privilege: slave, not private."""
    patch.setattr(rootfs, "MS_PRIVATE", MS_SLAVE)


def without_flag(name: str) -> Switch:
    """No mount gets this option."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rootfs, name, 0)

    return switch


def hosts_devices(patch: pytest.MonkeyPatch) -> None:
    def devices(dev: str, *rest: Any) -> None:
        syscalls.mount("/dev", dev, None, syscalls.MS_BIND | syscalls.MS_REC)

    patch.setattr(rootfs, "_devices", devices)


def hosts_proc(patch: pytest.MonkeyPatch) -> None:
    _mounts(patch, lambda kind: kind == "proc", "/proc")


def _mounts(patch: pytest.MonkeyPatch, chosen: Callable[[str | None], bool], instead: str | None) -> None:
    """Mounts of some kind become a bind mount of the host's, or do not happen."""
    real = syscalls.mount

    def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
        if not chosen(kind):
            real(source, target, kind, flags, data)
        elif instead is not None:
            real(instead, target, None, syscalls.MS_BIND | syscalls.MS_REC)

    patch.setattr(rootfs, "mount", mount)


def unmasked(path: str) -> Switch:
    def switch(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rootfs, "MASKED", tuple(one for one in rootfs.MASKED if one != path))

    return switch


def not_read_only(path: str) -> Switch:
    def switch(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(rootfs, "READ_ONLY", tuple(one for one in rootfs.READ_ONLY if one != path))

    return switch


def tmpfs_without_size(patch: pytest.MonkeyPatch) -> None:
    """The default is half of the host's memory (tmpfs(5)); nor is that noticed when limits are read back."""
    patch.setattr(start, "check_limits", _nothing)
    real = syscalls.mount

    def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
        if kind == "tmpfs" and data is not None:
            data = ",".join(option for option in data.split(",") if not option.startswith("size=")) or None
        real(source, target, kind, flags, data)

    patch.setattr(rootfs, "mount", mount)


# What a careless parent hands down.


def descriptors_stay(patch: pytest.MonkeyPatch) -> None:
    """They are closed twice: first thing in the child, and again by the exec."""
    patch.setattr(syscalls, "close_from", _nothing)
    patch.setattr(syscalls, "close_from_at_exec", _nothing)


def descriptor_as_directory(patch: pytest.MonkeyPatch) -> None:
    """One descriptor of the parent is left open, and named as the working directory (CVE-2024-21626)."""
    outside = os.open(os.environ["HARDENING_FOLDER"], os.O_PATH | os.O_DIRECTORY)
    os.dup2(outside, SPARED)
    os.close(outside)
    close_from, spawn = syscalls.close_from, enter.spawn_namespaced

    def sparing(first: int) -> None:
        for number in range(first, SPARED):
            with suppress(OSError):
                os.close(number)
        close_from(SPARED + 1)

    def astray(plan: enter.Plan, *rest: Any) -> enter.Child:
        return spawn(replace(plan, workdir=f"/proc/self/fd/{SPARED}"), *rest)

    patch.setattr(syscalls, "close_from", sparing)
    patch.setattr(enter, "spawn_namespaced", astray)


def directory_unchecked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walls, "check_directory", _nothing)


def same_session(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "setsid", _nothing)


def same_keyring(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(syscalls, "new_session_keyring", _nothing)


def parents_environment(patch: pytest.MonkeyPatch) -> None:
    def environment(spec: SandboxSpec) -> dict[str, str]:
        return dict(environment_asked_for(spec)) | dict(os.environ)

    for module in (driver, local):
        patch.setattr(module, "environment", environment)


# Limits.


def no_limit(controller: str) -> Switch:
    """One file of the control group is not written; nor does the manager miss it when it reads the limits back."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        write = cgroup._write

        def skipping(path: Path, value: int | str) -> None:
            if not path.name.startswith(controller):
                write(path, value)

        patch.setattr(cgroup, "_write", skipping)
        patch.setattr(start, "check_limits", _nothing)

    return switch


def no_init(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver, "INIT", ())


# Namespaces.


def _flags(patch: pytest.MonkeyPatch, flag: int) -> None:
    patch.setattr(enter, "_CLONE_FLAGS", enter._CLONE_FLAGS & ~flag)


def hosts_pids(patch: pytest.MonkeyPatch) -> None:
    """A /proc can only be mounted for a pid namespace of one's own: the host's takes its place."""
    _flags(patch, syscalls.CLONE_NEWPID)
    hosts_proc(patch)


def hosts_network(patch: pytest.MonkeyPatch) -> None:
    """No link is made for it then, and /sys is left out: it belongs to the owner of the network namespace."""
    _flags(patch, syscalls.CLONE_NEWNET)
    patch.setattr(lab, "attach", _nothing)
    patch.setattr(ifconfig, "up", _nothing)
    _mounts(patch, lambda kind: kind == "sysfs", None)


def way_out(patch: pytest.MonkeyPatch) -> None:
    """A default route, set from outside at the last moment."""
    release = enter.Child.release

    def with_route(self: enter.Child) -> None:
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "route", "add", "default"]
        subprocess.run([*command, "via", lab.HOST_ADDRESS], check=True)
        release(self)

    patch.setattr(enter.Child, "release", with_route)


def hosts_ipc(patch: pytest.MonkeyPatch) -> None:
    _flags(patch, syscalls.CLONE_NEWIPC)


def hosts_name(patch: pytest.MonkeyPatch) -> None:
    """The name is the host's then, and stays: plans are made without one."""
    _flags(patch, syscalls.CLONE_NEWUTS)
    spawn = enter.spawn_namespaced

    def nameless(plan: enter.Plan, *rest: Any) -> enter.Child:
        return spawn(replace(plan, hostname=None), *rest)

    patch.setattr(enter, "spawn_namespaced", nameless)


def hosts_cgroups(patch: pytest.MonkeyPatch) -> None:
    real = syscalls.unshare

    def unshare(flags: int) -> None:
        if flags & ~syscalls.CLONE_NEWCGROUP:
            real(flags & ~syscalls.CLONE_NEWCGROUP)

    patch.setattr(syscalls, "unshare", unshare)


def hosts_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walls, "unshare_time", _nothing)


def apply(patch: pytest.MonkeyPatch, switches: Sequence[Switch | None]) -> None:
    """Throw each switch that there is."""
    for switch in switches:
        if switch is not None:
            switch(patch)
