"""The one reader of what is in force in a sandbox.

A level says through a `View` how its files of proc(5) are read, and adds what its engine alone knows.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from sandbox.errors import EngineError
from sandbox.isolation import ending
from sandbox.isolation.in_force import (
    UNLIMITED,
    Capabilities,
    Domain,
    Ended,
    Engine,
    Inspection,
    Kernel,
    LimitsInForce,
    Link,
    MountPoint,
    Namespace,
    Namespaces,
    Network,
    Owner,
    Process,
    Root,
    Seccomp,
    SeccompMode,
    User,
)
from sandbox.kernel import caps, cgroup, ifconfig, nsfile, procfs
from sandbox.kernel.rootfs import MASKED, READ_ONLY
from sandbox.spec import Limits
from sandbox.state.record import Record

LINK = "eth0"
"""The interface of a sandbox that has a network stack of its own."""
_SIGNALLED = 128
"""Added to a signal's number it is the exit code of what the signal ended."""

Read = Callable[[str], str | None]
"""The text of a file, or where a symbolic link leads; None where it cannot be read."""


def read_host(path: str) -> str | None:
    """A file or link of this host."""
    with suppress(OSError):
        return os.readlink(path)
    return procfs.read(path)


@dataclass(frozen=True, slots=True)
class View:
    """A process as a kernel shows it.

    Attributes:
        read: how its files are read.
        pid: its number in that kernel; None where it cannot be seen.
        shared: whether the kernel is this host's.
    """

    read: Read
    pid: int | None
    shared: bool

    def text(self, name: str) -> str | None:
        """A file of its directory in /proc."""
        return None if self.pid is None else self.read(f"/proc/{self.pid}/{name}")


def host_view(pid: int | None) -> View:
    """A process of this host."""
    return View(read_host, pid, shared=True)


_OF_PROCESS = "status mountinfo mounts limits uid_map gid_map setgroups net/route net/dev net/fib_trie"
_OF_KERNEL = ("/proc/version", "/proc/cmdline", "/proc/cpuinfo", "/proc/meminfo")


def question(pid: str, *files: str) -> str:
    """A script for a shell inside that prints what `inside` reads: each line of a file after the file's path.

    One process for all files: an emulated machine takes some 20 ms to start one.

    Args:
        pid: a word of the shell for the process's number.
        files: more files to print.
    """
    paths = [*(f"/proc/$pid/{name}" for name in _OF_PROCESS.split()), *_OF_KERNEL, *files]
    return (
        f'pid={pid}; echo "pid:$pid"; LC_ALL=C grep -sH "" {" ".join(paths)}; '
        'find "/proc/$pid/ns" /proc/1/ns -type l -printf "%p:%l\\n" 2>/dev/null; true'
    )


def inside(answer: str | None) -> View:
    """A process of the sandbox's own kernel, by the answer to `question`; None where nobody answered."""
    found: dict[str, list[str]] = {}
    for line in (answer or "").split("\n"):
        path, colon, text = line.partition(":")
        if colon:
            found.setdefault(path, []).append(text)
    pid = found.get("pid", [""])[0]
    files = {path: "".join(f"{line}\n" for line in lines) for path, lines in found.items()}
    return View(files.get, int(pid) if pid.isdecimal() else None, shared=False)


def inspection(
    workload: View,
    carrier: int | None,
    limits: LimitsInForce,
    network: Network,
    outcome: tuple[bool | None, Ended | None],
    *,
    engine: Engine | None = None,
    domain: Domain | None = None,
) -> Inspection:
    """All sections, of which those from `limits` on have been read.

    `workload` is the sandbox's init, as the kernel that serves it shows it, `carrier` the pid of the process of this
    host that the sandbox runs in (None when it does not run), and `outcome` what the function of that name returns.
    """
    table = workload.text("mountinfo") or workload.text("mounts")
    mounts = None if table is None else procfs.mounts(table)
    return Inspection(
        _kernel(workload),
        _user(workload, inside=True),
        _capabilities(workload),
        _seccomp(workload),
        _namespaces(workload),
        None if mounts is None else _root(mounts),
        None if mounts is None else [MountPoint(*one) for one in mounts],
        None if mounts is None else _covered(mounts, MASKED),
        None if mounts is None else _covered([one for one in mounts if one.read_only], READ_ONLY),
        limits,
        network,
        None if carrier is None else _process(carrier),
        *outcome,
        engine,
        domain,
    )


@contextmanager
def readable() -> Iterator[None]:
    """Around what reads files that a kernel inside wrote, which may be anything.

    Raises:
        EngineError: it is no such file.
    """
    try:
        yield
    except (ValueError, IndexError, OverflowError) as error:
        raise EngineError(f"what is in force cannot be read: {error}") from error


def limits_in_force(
    found: Limits | None,
    workload: View,
    *,
    group: cgroup.Group | None = None,
    swap: int | None = None,
    oom_group: bool | None = None,
    cpuset: str | None = None,
) -> LimitsInForce:
    """The section `limits`, of limits as `Sandbox.limits` has them.

    `group` is the control group of this host that enforces them; what is read of it replaces `swap`, `oom_group` and
    `cpuset`, which are from elsewhere.
    """
    if group is not None:
        with suppress(OSError):
            swap, oom_group, cpuset = group.swap_limit(), group.oom_group(), group.cpuset()
    return LimitsInForce(
        cpus=found.cpus if found else None,
        memory=found.memory if found else None,
        pids=found.pids if found else None,
        disk=found.disk if found else None,
        swap=swap,
        oom_group=oom_group,
        cpuset=cpuset,
        file_size=_file_size(workload.text("limits")),
        source=found.source if found else None,
    )


def network_of(view: View, given: str, *, own: bool | None, mac: str | None = None) -> Network:
    """The section `network`.

    Args:
        view: a process in the network namespace.
        given: the address that the sandbox was given.
        own: whether it is another network stack than this host's.
        mac: where this host cannot be asked for it.
    """
    tree, table, links = view.text("net/fib_trie"), view.text("net/route"), view.text("net/dev")
    addresses = [one for one in procfs.addresses(tree or "") if not one.startswith("127.")]
    interfaces = None if links is None else {name: Link(*moved) for name, moved in procfs.links(links).items()}
    link = LINK if own and interfaces is not None and LINK in interfaces else None
    if link is not None and view.shared:
        with suppress(OSError), nsfile.inside(f"/proc/{view.pid}/ns/net"):
            mac = ifconfig.hardware_address(link)
    return Network(
        own=own,
        address=given if given in addresses else next(iter(addresses), None),
        link=link,
        mac=mac,
        routes=None if table is None else procfs.routes(table),
        interfaces=interfaces,
    )


def own_network(pid: int | None) -> bool | None:
    """Whether a process of this host has another network namespace than this command."""
    owner = _namespace(host_view(pid), "net").owner
    return None if owner is None else owner is Owner.SANDBOX


def outcome(
    record: Record,
    *,
    ended: bool,
    code: int | None,
    oom_killed: bool | None,
    time: float | None = None,
    reason: str | None = None,
) -> tuple[bool | None, Ended | None]:
    """The sections `oom_killed` and `ended`, from the arguments and from the file that was written at the end.

    `ended` says whether the sandbox ran and runs no more.
    """
    if not ended:
        return oom_killed, None
    noted = ending.read(record.directory) or record.exit
    if noted is not None:
        time = noted.time
        code = noted.code if code is None else code
        oom_killed = noted.oom_killed if oom_killed is None else oom_killed or noted.oom_killed is True
    date = None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    return oom_killed, Ended(
        date, code, reason or _reason(code, oom_killed) or (None if noted is None else noted.reason)
    )


def _reason(code: int | None, oom_killed: bool | None) -> str | None:
    if oom_killed and code == _SIGNALLED + signal.SIGKILL:
        return "out of memory"
    if code is None:
        return None
    with suppress(ValueError):
        return f"killed by {signal.Signals(code - _SIGNALLED).name}"
    return "exited"


def _kernel(view: View) -> Kernel:
    read = view.read if view.pid is not None else (lambda _: None)
    version, line, processors, memory = (read(path) for path in _OF_KERNEL)
    return Kernel(
        shared=view.shared,
        release=version.split()[2] if version and len(version.split()) > 2 else None,
        command_line=line.strip() if line is not None else None,
        processors=sum(row.startswith("processor") for row in (processors or "").split("\n")) or None,
        memory=procfs.kibibytes(memory or "", "MemTotal"),
        swap=procfs.kibibytes(memory or "", "SwapTotal"),
    )


def _process(pid: int) -> Process | None:
    view = host_view(pid)
    if view.text("status") is None:
        return None
    program = (view.text("cmdline") or "").partition("\0")[0]
    return Process(
        pid=pid,
        program=program or None,
        descriptors=_descriptors(pid),
        user=_user(view, inside=False),
        capabilities=_capabilities(view),
        seccomp=_seccomp(view),
        namespaces=_namespaces(view),
    )


def _user(view: View, *, inside: bool) -> User:
    said = procfs.fields(view.text("status") or "")
    rows = {name: _id_map(view.text(f"{name}_map")) for name in ("uid", "gid")}
    numbers = {name: [int(word) for word in said[name].split()] for name in ("Uid", "Gid", "Groups") if name in said}

    def mapped(number: int, name: str) -> int | None:
        return inside_id(number, rows[name]) if inside and rows[name] else number

    new_privileges, setgroups = said.get("NoNewPrivs"), view.text("setgroups")
    return User(
        uid=mapped(numbers["Uid"][1], "uid") if "Uid" in numbers else None,
        gid=mapped(numbers["Gid"][1], "gid") if "Gid" in numbers else None,
        groups=[one for number in numbers["Groups"] if (one := mapped(number, "gid")) is not None]
        if "Groups" in numbers
        else None,
        no_new_privileges=None if new_privileges is None else new_privileges == "1",
        uid_map=rows["uid"],
        gid_map=rows["gid"],
        setgroups=None if setgroups is None else setgroups.strip(),
    )


def inside_id(outside: int, rows: list[list[int]] | None) -> int | None:
    """An id as it is inside, by rows of (first inside, first outside, count); None for one that is not mapped."""
    for first, base, count in rows or ():
        if base <= outside < base + count:
            return first + outside - base
    return None


def _id_map(text: str | None) -> list[list[int]] | None:
    return None if text is None else [[int(word) for word in line.split()] for line in text.split("\n") if line]


def _capabilities(view: View) -> Capabilities:
    sets = caps.parse(view.text("status") or "")
    return Capabilities(*(caps.names(sets[name]) if name in sets else None for name in caps.SETS))


def _seccomp(view: View) -> Seccomp:
    said = caps.parse(view.text("status") or "")
    mode = said.get("Seccomp")
    return Seccomp(None if mode is None else dict(enumerate(SeccompMode)).get(mode), said.get("Seccomp_filters"))


def _namespaces(view: View) -> Namespaces:
    return Namespaces(*(_namespace(view, kind.name) for kind in fields(Namespaces)))


def _namespace(view: View, kind: str) -> Namespace:
    first = "self" if view.shared else "1"
    # Before Linux 6.3 an init keeps the host's clock, and its children have the sandbox's.
    for name in ("time_for_children", "time") if kind == "time" else (kind,):
        ours, theirs = view.text(f"ns/{name}"), view.read(f"/proc/{first}/ns/{name}")
        if ours is not None and theirs is not None:
            common = Owner.HOST if view.shared else Owner.GUEST
            number = ours.partition("[")[2].partition("]")[0]
            return Namespace(int(number), common if ours == theirs else Owner.SANDBOX)
    return Namespace(None, None)


def _root(mounts: list[procfs.Mount]) -> Root | None:
    # The last mount on a target is the one that is seen.
    tops = [mount for mount in mounts if mount.target == "/"]
    return Root(tops[-1].read_only, tops[-1].type) if tops else None


def _covered(mounts: list[procfs.Mount], paths: tuple[str, ...]) -> list[str]:
    targets = {mount.target for mount in mounts}
    return [path for path in paths if path in targets]


def _file_size(text: str | None) -> int | None:
    """The soft limit RLIMIT_FSIZE, of proc_pid_limits(5)."""
    for line in (text or "").split("\n"):
        if line.startswith("Max file size"):
            soft = line.split()[3]
            return UNLIMITED if soft == "unlimited" else int(soft)
    return None


def _descriptors(pid: int) -> list[str] | None:
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    return [f"{number} {_kind(f'/proc/{pid}/fd/{number}')}" for number in numbers]


def _kind(path: str) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFCHR: "device", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    try:
        return kinds.get(stat.S_IFMT(os.stat(path).st_mode), "other")
    except OSError:
        return "gone"
