"""The table: each item of the hardening of level `namespace`, the attempt that meets it, and how to take it away.

A new item is one entry. `held` judges what the attempt came to: true inside, false outside, and false inside once the
item alone is gone. Some attempts meet a second wall when the first is gone (a mount without its filter still needs a
capability); then what is judged is which wall answers: the error differs, or the kernel's own record of the wall does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sandbox.kernel import rootfs
from sandbox.spec import MIB
from tests.integration.hardening import switches
from tests.integration.hardening.switches import Switch
from tools.seccomp import compiler

NUMBERS = compiler.MACHINES[os.uname().machine][1]
ALL_ONES = -1
PLAIN: tuple[str, ...] = ()
AS_INIT = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Outside, but in a pid namespace whose process 1 is the program itself (unshare(1))."""


@dataclass(frozen=True, slots=True)
class Case:
    """One item.

    Attributes:
        name: of the item, as in docs/hardening.md.
        probe: the attempt in `probes`, with its arguments.
        held: whether the item stands, by the answer.
        without: takes it away.
        ways: who sees that it is gone: the workload's own process, a command beside it, one as root.
        base: another item that stands in front of this one, and is down in each comparison.
        before: outside, the command that the program is run by.
        outside: why there is nothing to be tried outside; None where there is.
        apart: in a sandbox of its own, which it may bring down.
        refusal: a pattern; the sandbox does not come up, and says this, where only `base` is down.
        there: whether this kernel has what the item is about.
    """

    name: str
    probe: tuple[Any, ...]
    held: Callable[[Any], bool]
    without: Switch
    ways: tuple[str, ...] = ("workload",)
    base: Switch | None = None
    before: tuple[str, ...] = PLAIN
    outside: str | None = None
    apart: bool = False
    refusal: str | None = None
    there: bool = True


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda answer: answer in values


def _empty(answer: Any) -> bool:
    return isinstance(answer, list) and not answer


def users_and_privileges() -> Iterable[Case]:
    """Who one is inside, and what he may do."""
    every = ("workload", "exec", "root")
    yield Case(
        "root inside is nobody outside",
        ("text", "/etc/shadow", 1),
        _is(["refused", "EACCES"]),
        switches.same_users,
        ways=("root",),
    )
    yield Case(
        "setgroups denied",
        ("text", "/proc/self/setgroups"),
        _is(["read", "deny\n"]),
        switches.setgroups_allowed,
        ways=every,
    )
    yield Case("no_new_privs", ("prctl", 39), _is(1), switches.new_privileges, ways=every)
    for name, switch in (
        ("CapInh", switches.inheritable_kept),
        ("CapPrm", switches.ambient_kept),
        ("CapEff", switches.ambient_kept),
        ("CapBnd", switches.bounding_full),
        ("CapAmb", switches.ambient_kept),
    ):
        yield Case(
            f"capability set {name} empty",
            ("status", name),
            _is("0" * 16),
            switch,
            ways=every,
            outside="a process outside has no such set by itself" if name in ("CapInh", "CapAmb") else None,
        )
    yield Case("securebits locked", ("prctl", 27), _is(0xEF), switches.no_securebits, ways=every)


def calls() -> Iterable[Case]:
    """The filter: each call refused by the filter itself, with arguments that the kernel would refuse otherwise."""
    yield Case("seccomp filter", ("status", "Seccomp"), _is("2"), switches.no_filter, ways=("workload", "exec", "root"))
    refused: dict[str, tuple[int, ...]] = {
        "io_uring_setup": (0, 0),
        "io_uring_enter": (ALL_ONES, 0, 0, 0, 0, 0),
        "io_uring_register": (ALL_ONES, 0, 0, 0),
        "keyctl": (0, -3, 1),
        "add_key": (0, 0, 0, 0, -3),
        "request_key": (0, 0, 0, -3),
        "bpf": (9999, 0, 1 << 20),
        "userfaultfd": (1,),
        "perf_event_open": (0, 0, 0, 0, ALL_ONES),
        "mount": (0, 0, 0, 0, 0),
        "umount2": (0, ALL_ONES),
        "open_tree": (ALL_ONES, 0, ALL_ONES),
        "chroot": (0,),
        "mount_setattr": (ALL_ONES, 0, ALL_ONES, 0, 0),
        "unshare": (0x10000000,),
        "setns": (ALL_ONES, 0),
        "pidfd_getfd": (ALL_ONES, 0, 0),
        "process_madvise": (ALL_ONES, 0, 0, 0, 0),
        "kcmp": (ALL_ONES, ALL_ONES, 0, 0, 0),
        "fanotify_mark": (ALL_ONES, 0, 0, 0, 0),
        "quotactl": (ALL_ONES, 0, 0, 0),
        "mbind": (0, 0, ALL_ONES, 0, 0, ALL_ONES),
    }
    for name, arguments in refused.items():
        yield _call(name, name, arguments, "EPERM")
    yield _call("clone3", "clone3", (0, 0), "ENOSYS")
    # A thread without shared memory is EINVAL to the kernel, so that nothing is made where the filter lets it pass.
    for flag, number in (("NEWUSER", 0x10000000), ("NEWNS", 0x00020000), ("NEWNET", 0x40000000)):
        yield _call(f"clone(CLONE_{flag})", "clone", (0x00010000 | number,), "EPERM")
    yield _call("socket(AF_ALG)", "socket", (38, 5, 0), "EPERM")
    yield _call("socket(AF_VSOCK)", "socket", (40, 1, 0), "EPERM")
    yield _call("socket(AF_PACKET)", "socket", (17, ALL_ONES, 0), "EPERM")
    yield _call("ioctl(TIOCSTI)", "ioctl", (0, 0x5412, 0), "EPERM")
    yield _call("ioctl(TIOCLINUX)", "ioctl", (0, 0x541C, 0), "EPERM")
    yield _call("personality(READ_IMPLIES_EXEC)", "personality", (0x0400000,), "EPERM")


def _call(title: str, name: str, arguments: tuple[int, ...], error: str) -> Case:
    return Case(
        f"seccomp {title}",
        ("call", NUMBERS[name], *arguments),
        _is(error),
        switches.passes(name),
        ways=("workload", "exec"),
    )


def files() -> Iterable[Case]:
    """What is to be seen of the host's files."""
    yield Case("pivot_root and detach", ("secret",), _empty, switches.old_root_stays, ways=("workload", "exec"))
    yield Case("mount propagation private", ("propagation",), _empty, switches.mounts_arrive)
    yield Case("nosuid", ("mounts", "nosuid"), _empty, switches.without_flag("MS_NOSUID"))
    yield Case("nodev", ("mounts", "nodev"), _only_devices, switches.without_flag("MS_NODEV"))
    harmless = {"c 1:3", "c 1:5", "c 1:7", "c 1:8", "c 1:9", "c 5:0", "c 5:2"}
    yield Case("private /dev", ("devices",), lambda seen: set(seen) <= harmless, switches.hosts_devices)
    yield Case("own /proc", ("processes",), _is(False), switches.hosts_proc)
    for path in rootfs.MASKED:
        there = os.path.exists(path)
        yield Case(f"masked {path}", ("masked", path), _masked, switches.unmasked(path), there=there)
    for path in rootfs.READ_ONLY:
        there = os.path.exists(path)
        yield Case(f"read-only {path}", ("writable", path), _read_only, switches.not_read_only(path), there=there)
    yield Case(
        "read-only root",
        ("create", "/x", "/etc/x", "/usr/bin/x", "/opt/sandbox/x"),
        _is(["EROFS"] * 4),
        switches.without_flag("MS_RDONLY"),
        outside="it would change the machine",
    )
    for path, size, ways in (
        ("/tmp", 8 * MIB, ("workload", "root")),
        ("/dev/shm", rootfs.SHM_BYTES, ("workload", "root")),
        ("/run", MIB, ("root",)),
    ):
        yield Case(
            f"sized tmpfs {path}",
            ("fill", path, size + size // 4),
            lambda answer: answer == "ENOSPC" or str(answer).startswith("closed"),
            switches.tmpfs_without_size,
            ways=ways,
        )


def _only_devices(points: Any) -> bool:
    """Nodes are bound where they are meant to be, /dev/null over masked files among them; /dev/pts makes some."""
    return set(points) <= {"/dev", "/dev/pts", *(f"/dev/{name}" for name in rootfs.DEVICES), *rootfs.MASKED}


def _masked(answer: Any) -> bool:
    return answer in (["covered", 0], ["absent", "ENOENT"])


def _read_only(answer: Any) -> bool:
    return answer in (["ro", None], ["absent", "ENOENT"])


def handed_down() -> Iterable[Case]:
    """What a parent has, and its sandbox had better not get."""
    yield Case(
        "descriptors closed", ("descriptors",), _empty, switches.descriptors_stay, ways=("workload", "exec", "root")
    )
    yield Case(
        "working directory inside",
        ("directory",),
        _is(False),
        switches.directory_unchecked,
        base=switches.descriptor_as_directory,
        outside="the attempt is a relative path: it means nothing but from the directory that is handed down",
        refusal="outside the root|No such file",
    )
    yield Case("new session", ("terminal",), _is("ENXIO"), switches.same_session, ways=("workload", "exec"))
    yield Case(
        "new session keyring",
        ("keyring", NUMBERS["keyctl"]),
        lambda answer: answer != "ok",
        switches.same_keyring,
        ways=("workload", "exec"),
        base=switches.passes("keyctl"),
    )
    yield Case(
        "clean environment",
        ("environment",),
        lambda names: "HARDENING_SECRET" not in names,
        switches.parents_environment,
        ways=("workload", "exec"),
    )


def limits() -> Iterable[Case]:
    """What one sandbox can take of the machine; test_limits.py has it at every level, with the kernel as witness."""
    yield Case("pids.max", ("forks", 40), lambda got: got < 32, switches.no_limit("pids."), apart=True)
    yield Case(
        "memory.max, no swap",
        ("memory", 80 * MIB),
        lambda answer: answer != "got it",
        switches.no_limit("memory."),
        apart=True,
    )


def namespaces() -> Iterable[Case]:
    """An init, and a view of the machine of one's own."""
    yield Case("init is tini", ("init",), _is("tini"), switches.no_init)
    yield Case("init reaps", ("orphan",), _is(False), switches.no_init, before=AS_INIT)
    yield Case("own pid namespace", ("alive",), _is("ESRCH"), switches.hosts_pids)
    yield Case("own network namespace", ("abstract",), lambda got: got != "connected", switches.hosts_network)
    yield Case("own links", ("links",), _is(["eth0", "lo"]), switches.hosts_network)
    yield Case("no route beyond", ("route",), _is("ENETUNREACH"), switches.way_out)
    yield Case("own ipc namespace", ("shared_memory",), _is("ENOENT"), switches.hosts_ipc)
    host = os.uname().nodename
    yield Case("own uts namespace", ("hostname",), lambda name: name != host, switches.hosts_name)
    here = os.readlink("/proc/self/ns/time") if os.path.exists("/proc/self/ns/time") else None
    yield Case(
        "own time namespace",
        ("clock",),
        lambda seen: seen[0] != here and time.clock_gettime(time.CLOCK_BOOTTIME) - seen[1] > 1,
        switches.hosts_clock,
        ways=("workload", "exec"),
        there=here is not None,
    )
    yield Case("own cgroup namespace", ("text", "/proc/self/cgroup"), _all_roots, switches.hosts_cgroups)


def _all_roots(answer: Any) -> bool:
    """Every path is the root, or (exec's, which joins from outside) at least tells nothing of what is above."""
    return all(line.split(":", 2)[2] == "/" for line in answer[1].splitlines() if "sandbox" in line or "/" in line)


CASES: dict[str, Case] = {
    case.name: case
    for group in (users_and_privileges, calls, files, handed_down, limits, namespaces)
    for case in group()
}
