"""What is in force for a local sandbox, read from the kernel: proc(5), its control group, and the mount table.

Nothing here comes from the spec but what is said to: where the two differ, the kernel is right.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.kernel import caps
from sandbox.kernel.cgroup import Group
from sandbox.kernel.rootfs import MASKED, READ_ONLY
from sandbox.kernel.syscalls import NAMESPACES
from sandbox.state.record import Record

_SECCOMP_MODES = {0: "none", 1: "strict", 2: "filter"}
"""proc_pid_status(5), Seccomp."""
_SETS = {
    "inheritable": "CapInh",
    "permitted": "CapPrm",
    "effective": "CapEff",
    "bounding": "CapBnd",
    "ambient": "CapAmb",
}


def effective(record: Record, group: Group, pid: int | None) -> dict[str, Any]:
    """What `Sandbox.effective` promises; of a sandbox that has ended, its address and what its control group has.

    Args:
        record: of the sandbox.
        group: its control group.
        pid: of its init; None for one that has ended.
    """
    table = mounts(pid)
    return {
        "process": {"pid": pid, "descriptors": None if pid is None else _descriptors(pid)},
        "user": user(pid),
        "capabilities": capabilities(pid),
        "seccomp": seccomp(pid),
        "namespaces": namespaces(pid),
        "root": root(table or ()),
        "mounts": table,
        "masked_paths": None if table is None else _covered(table, MASKED),
        "read_only_paths": None if table is None else _covered(table, READ_ONLY),
        "limits": limits(group, pid),
        "network": {"address": record.address, "own": _own(pid, "net"), "interfaces": interfaces(pid)},
    }


def disk_limit(pid: int) -> int | None:
    """Bytes of the file system at the /tmp of a process; None where it has ended."""
    try:
        found = os.statvfs(f"/proc/{pid}/root/tmp")
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def user(pid: int | None) -> dict[str, Any] | None:
    """Ids of its init, inside and outside, and how they are mapped (user_namespaces(7))."""
    fields = _status(pid)
    if fields is None:
        return None
    uid_map, gid_map = _id_map(pid, "uid_map"), _id_map(pid, "gid_map")
    outside_uid, outside_gid = (int(fields[name].split()[0]) for name in ("Uid", "Gid"))
    groups = [int(word) for word in fields.get("Groups", "").split()]
    return {
        "uid": inside(outside_uid, uid_map),
        "gid": inside(outside_gid, gid_map),
        "groups": [inside(number, gid_map) for number in groups],
        "uid_outside": outside_uid,
        "gid_outside": outside_gid,
        "uid_map": uid_map,
        "gid_map": gid_map,
        "setgroups": _text(f"/proc/{pid}/setgroups"),
    }


def inside(outside: int, id_map: list[list[int]] | None) -> int | None:
    """An id as it is inside, by rows of (first inside, first outside, count); None for one that is not mapped."""
    for first, base, count in id_map or ():
        if base <= outside < base + count:
            return first + outside - base
    return None


def _id_map(pid: int | None, name: str) -> list[list[int]] | None:
    text = _text(f"/proc/{pid}/{name}")
    return None if text is None else [[int(word) for word in line.split()] for line in text.splitlines()]


def capabilities(pid: int | None) -> dict[str, list[str]] | None:
    """The five sets of its init, by name (capabilities(7))."""
    fields = _caps(pid)
    if fields is None:
        return None
    return {name: caps.names(fields[field]) for name, field in _SETS.items()}


def seccomp(pid: int | None) -> dict[str, Any] | None:
    """The mode and number of its filters, and whether it can gain privileges (proc_pid_status(5))."""
    fields = _caps(pid)
    if fields is None:
        return None
    return {
        "mode": _SECCOMP_MODES.get(fields.get("Seccomp", -1)),
        "filters": fields.get("Seccomp_filters"),
        "no_new_privileges": bool(fields["NoNewPrivs"]) if "NoNewPrivs" in fields else None,
    }


def namespaces(pid: int | None) -> dict[str, dict[str, Any]] | None:
    """Each kind's inode number, and whether it is another one than the host's (namespaces(7))."""
    if pid is None:
        return None
    found = {}
    for kind in NAMESPACES:
        number = _namespace(pid, kind)
        if number is not None:
            found[kind] = {"id": number, "own": number != _namespace("self", kind)}
    return found


def _namespace(pid: int | str, kind: str) -> int | None:
    # The clock of the init's children, which the workload is: before Linux 6.3 the init keeps the host's.
    name = "time_for_children" if kind == "time" else kind
    try:
        return os.stat(f"/proc/{pid}/ns/{name}").st_ino
    except OSError:
        return None


def _own(pid: int | None, kind: str) -> bool | None:
    return None if pid is None else _namespace(pid, kind) != _namespace("self", kind)


def mounts(pid: int | None) -> list[dict[str, Any]] | None:
    """Its mount table as seen from its root (proc_pid_mountinfo(5)); what lies outside its root is left out."""
    text = _text(f"/proc/{pid}/mountinfo") if pid is not None else None
    return None if text is None else parse_mounts(text)


def parse_mounts(mountinfo: str) -> list[dict[str, Any]]:
    """The lines of a mountinfo file, each with its target, type, source, options and the place in its file system."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        of_mount, of_system = fields[5].split(","), tail[2].split(",") if len(tail) > 2 else []
        # A file system may be writable elsewhere, and read-only by this mount; it counts what is stricter.
        read_only = "ro" in of_mount or "ro" in of_system
        rest = [option for option in dict.fromkeys([*of_mount, *of_system]) if option not in ("ro", "rw")]
        found.append(
            {
                "target": _unescaped(fields[4]),
                "type": tail[0],
                "source": _unescaped(tail[1]),
                "root": _unescaped(fields[3]),
                "options": ["ro" if read_only else "rw", *rest],
                "read_only": read_only,
            }
        )
    return found


def _unescaped(text: str) -> str:
    """Blanks, tabs, line breaks and backslashes are octal there."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def root(table: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Whether its root can be written; None where it has ended."""
    # The last mount on a target is the one that is seen.
    tops = [mount for mount in table if mount["target"] == "/"]
    return {"read_only": tops[-1]["read_only"], "type": tops[-1]["type"]} if tops else None


def _covered(table: Iterable[dict[str, Any]], paths: Iterable[str]) -> list[str]:
    targets = {mount["target"] for mount in table}
    return [path for path in paths if path in targets]


def limits(group: Group, pid: int | None) -> dict[str, Any]:
    """Limits as the kernel has them. A control group is there until the sandbox is removed."""
    found: dict[str, Any] = dict.fromkeys(("cpus", "memory", "pids", "swap", "oom_group", "cpuset"))
    with suppress(OSError):
        found["cpus"], found["memory"], found["pids"] = group.read_limits()
        found["swap"], found["oom_group"], found["cpuset"] = group.swap_limit(), group.oom_group(), group.cpuset()
    return found | {
        "disk": None if pid is None else disk_limit(pid),
        "file_size": None if pid is None else _file_size(pid),
        "cgroup": group.where.mode,
    }


def _file_size(pid: int) -> int | None:
    """RLIMIT_FSIZE of its init, which the log is under too (proc_pid_limits(5)); None without a limit."""
    for line in (_text(f"/proc/{pid}/limits") or "").splitlines():
        if line.startswith("Max file size"):
            soft = line.split()[3]
            return None if soft == "unlimited" else int(soft)
    return None


def interfaces(pid: int | None) -> dict[str, dict[str, int]] | None:
    """Bytes received and sent over each link of its network namespace (proc_pid_net(5), dev)."""
    text = _text(f"/proc/{pid}/net/dev") if pid is not None else None
    return None if text is None else parse_links(text)


def parse_links(text: str) -> dict[str, dict[str, int]]:
    """The lines of /proc/net/dev: bytes are the first column of eight received, and the first of those sent."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, columns = line.partition(":")
        figures = columns.split()
        found[name.strip()] = {"received": int(figures[0]), "sent": int(figures[8])}
    return found


def _descriptors(pid: int) -> list[str] | None:
    """What its init has open."""
    try:
        return sorted(_kind(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _kind(path: str) -> str:
    with suppress(OSError):
        mode = os.stat(path).st_mode
        number = os.path.basename(path)
        for test, kind in ((stat.S_ISREG, "file"), (stat.S_ISCHR, "device"), (stat.S_ISFIFO, "pipe")):
            if test(mode):
                return f"{number} {kind}"
        return f"{number} other"
    return f"{os.path.basename(path)} gone"


def _status(pid: int | None) -> dict[str, str] | None:
    text = _text(f"/proc/{pid}/status") if pid is not None else None
    if text is None:
        return None
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _caps(pid: int | None) -> dict[str, int] | None:
    text = _text(f"/proc/{pid}/status") if pid is not None else None
    return None if text is None else caps.parse(text)


def _text(path: str) -> str | None:
    """A file of /proc; None where its process is gone."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
