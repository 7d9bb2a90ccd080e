"""Reader of the settings in force in a sandbox, shared by all levels.

A level supplies a `View`, which reads files of proc(5) in the sandbox, and adds what only its engine knows.
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
"""A command that was ended by signal n has the exit code 128+n in a shell."""

Read = Callable[[str], str | None]
"""Returns the text of a file or the target of a symbolic link; None if it cannot be read."""


def read_host(path: str) -> str | None:
    """Read a file or link of this host."""
    with suppress(OSError):
        return os.readlink(path)
    return procfs.read(path)


@dataclass(frozen=True, slots=True)
class View:
    """A process as seen through a kernel's proc(5) files.

    Attributes:
        read: reads a file through this kernel.
        pid: the process's number in this kernel; None if it cannot be seen.
        shared: whether this is the host's kernel.
    """

    read: Read
    pid: int | None
    shared: bool

    def text(self, name: str) -> str | None:
        """Return the text of a file in its directory in /proc."""
        return None if self.pid is None else self.read(f"/proc/{self.pid}/{name}")


def host_view(pid: int | None) -> View:
    """Return a view of a process of this host."""
    return View(read_host, pid, shared=True)


_OF_PROCESS = "status mountinfo mounts limits uid_map gid_map setgroups net/route net/dev net/fib_trie"
_OF_KERNEL = ("/proc/version", "/proc/cmdline", "/proc/cpuinfo", "/proc/meminfo")


def question(pid: str, *files: str) -> str:
    """Return a shell script, to be run inside, that prints each line of the files for `inside`, after the file's path.

    All files are read by one process, because an emulated machine takes about 20 ms to start one.

    Args:
        pid: a shell word that expands to the process's number.
        files: additional files to print.
    """
    paths = [*(f"/proc/$pid/{name}" for name in _OF_PROCESS.split()), *_OF_KERNEL, *files]
    return (
        f'pid={pid}; echo "pid:$pid"; LC_ALL=C grep -sH "" {" ".join(paths)}; '
        'find "/proc/$pid/ns" /proc/1/ns -type l -printf "%p:%l\\n" 2>/dev/null; true'
    )


def inside(answer: str | None) -> View:
    """Return a view of a process in the sandbox's own kernel, from the output of `question`; None if there is none."""
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
    """Read the sections up to `masked_paths` and `process`, and combine them with the sections given.

    Args:
        workload: the sandbox's init, as seen through the kernel that serves it.
        carrier: the pid of the process of this host that the sandbox runs in; None if it does not run.
        limits: this section.
        network: this section.
        outcome: the result of the function `outcome`.
        engine: this section, if the level has one.
        domain: this section, if the level has one.
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
    """Turn parse errors into EngineError: the files come from a kernel inside, which may return anything.

    Raises:
        EngineError: a file could not be parsed.
    """
    try:
        yield
    except (ValueError, IndexError, OverflowError) as error:
        raise EngineError(f"the settings in force cannot be read: {error}") from error


def limits_in_force(
    found: Limits | None,
    workload: View,
    *,
    group: cgroup.Group | None = None,
    swap: int | None = None,
    oom_group: bool | None = None,
    cpuset: str | None = None,
) -> LimitsInForce:
    """Return the section `limits`, from limits as `Sandbox.limits` returns them.

    If the control group of this host that enforces them is given, `swap`, `oom_group` and `cpuset` are read from it.
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
    """Return the section `network`.

    Args:
        view: a process in the network namespace.
        given: the address assigned to the sandbox.
        own: whether the network stack differs from this host's.
        mac: the hardware address, if it cannot be read from this host.
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
    """Return whether a process of this host is in another network namespace than this command."""
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
    """Return the sections `oom_killed` and `ended`, from the arguments and from what the keeper recorded.

    `ended` says whether the sandbox ran and has ended.
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
    """Map an id of this host to the id inside, by rows of (first inside, first outside, count); None if unmapped."""
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
    # The last mount on a target hides the others.
    tops = [mount for mount in mounts if mount.target == "/"]
    return Root(tops[-1].read_only, tops[-1].type) if tops else None


def _covered(mounts: list[procfs.Mount], paths: tuple[str, ...]) -> list[str]:
    targets = {mount.target for mount in mounts}
    return [path for path in paths if path in targets]


def _file_size(text: str | None) -> int | None:
    """Return the soft limit RLIMIT_FSIZE from proc_pid_limits(5)."""
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
