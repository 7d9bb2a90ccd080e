"""Reads the text files of proc(5) and of control groups. Every start imports this, so it is light.

Input may be incomplete, since a sandbox's own kernel may have written it: what is not there is left out. Lines end at a
line feed and fields at a blank, nowhere else: a name may hold any other of the characters that Python's `splitlines`
and `split` take for ends, and the kernel writes them as they are.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import NamedTuple


def read(path: str) -> str | None:
    """The text of a file; None where it cannot be read: its process is gone, say."""
    with suppress(OSError), open(path, "rb") as stream:
        return stream.read().decode("utf-8", "replace")
    return None


def size(path: str) -> int | None:
    """Bytes that the file system at a path holds in all (statvfs(3)); None where it cannot be seen."""
    with suppress(OSError):
        found = os.statvfs(path)
        return found.f_blocks * found.f_frsize
    return None


class Mount(NamedTuple):
    """A line of a mount table.

    Attributes:
        target: the mount point.
        type: of the file system.
        source: the device, or what the file system calls its source.
        root: the directory of the file system that is mounted; None where the table does not have it.
        options: "ro" or "rw", whichever is in force, then the mount's and the file system's others.
        read_only: whether nothing can be written through it.
    """

    target: str
    type: str
    source: str
    root: str | None
    options: list[str]
    read_only: bool


def mounts(text: str) -> list[Mount]:
    """The mounts of proc_pid_mountinfo(5), or of proc_pid_mounts(5), which has no roots; other lines are left out."""
    found = []
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" in fields[6:-3]:
            root, target, of_mount = fields[3:6]
            kind, source, of_system = fields[fields.index("-", 6) + 1 :][:3]
        elif len(fields) == 6:
            source, target, kind, of_mount = fields[:4]
            root, of_system = None, ""
        else:
            continue
        words = [word for word in (*of_mount.split(","), *of_system.split(",")) if word]
        # A file system may be writable elsewhere and read-only by this mount, or the other way round.
        read_only = "ro" in words
        options = ["ro" if read_only else "rw", *(word for word in dict.fromkeys(words) if word not in ("ro", "rw"))]
        root = None if root is None else unescape(root)
        found.append(Mount(unescape(target), kind, unescape(source), root, options, read_only))
    return found


def unescape(text: str) -> str:
    """A name as the mount table has it: blanks, tabs, line breaks and backslashes are three octal digits there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def own_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace; names that are no UTF-8 have surrogates, as os.fsdecode has them.

    Raises:
        OSError
    """
    with open("/proc/self/mountinfo", "rb") as stream:
        return mounts(stream.read().decode("utf-8", "surrogateescape"))


def fields(text: str) -> dict[str, str]:
    """Lines of "Name: value": proc_pid_status(5), proc_meminfo(5), proc_pid_io(5)."""
    lines = (line.partition(":") for line in text.split("\n"))
    return {name: value.strip() for name, colon, value in lines if colon}


def kibibytes(text: str, name: str) -> int | None:
    """Bytes of a field that is counted in kB, such as MemTotal of proc_meminfo(5)."""
    value = fields(text).get(name, "").removesuffix(" kB")
    return int(value) * 1024 if value.isdecimal() else None


class Stat(NamedTuple):
    """Some fields of proc_pid_stat(5); `start` is in clock ticks since the host's boot."""

    state: str
    parent: int
    session: int
    start: int


def stat(data: bytes) -> Stat:
    """The fields of /proc/pid/stat. The name of a process may hold blanks and brackets, so they count from its end.

    Raises:
        ValueError, IndexError: it is no such file.
    """
    words = data[data.rindex(b")") + 2 :].split()
    return Stat(words[0].decode("ascii"), int(words[1]), int(words[3]), int(words[19]))


def groups(text: str) -> dict[str, str]:
    """Controller to path, of /proc/pid/cgroup (cgroups(7)); the key of the unified tree is ""."""
    lines = (line.split(":", 2) for line in text.rstrip("\n").split("\n"))
    return {name: path for _, controllers, path in lines for name in controllers.split(",")}


def keyed(text: str) -> dict[str, int]:
    """A flat keyed file of a control group, such as memory.events, and /proc/vmstat."""
    lines = (line.rpartition(" ") for line in text.split("\n"))
    return {key: int(value) for key, _, value in lines if value.isdecimal()}


def links(text: str) -> dict[str, tuple[int, int]]:
    """Bytes received and sent over each network interface: /proc/pid/net/dev (proc_pid_net(5))."""
    found = {}
    for line in text.split("\n"):
        name, colon, columns = line.partition(":")
        if colon:
            figures = columns.split()
            found[name.strip()] = int(figures[0]), int(figures[8])
    return found


def traffic(pid: int, link: str) -> tuple[int | None, int | None]:
    """Bytes received and sent over one interface of a process's network namespace; None where there is none."""
    return links(read(f"/proc/{pid}/net/dev") or "").get(link, (None, None))


def addresses(text: str) -> list[str]:
    """IPv4 addresses of a network namespace: /proc/pid/net/fib_trie has them as local routes of one address."""
    return list(dict.fromkeys(re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", text)))


def routes(text: str) -> list[str]:
    """/proc/pid/net/route as ip-route(8) prints routes; its numbers are hexadecimal, in the machine's byte order."""
    found = []
    for line in filter(None, text.split("\n")[1:]):
        link, destination, gateway, _, _, _, _, mask = line.split()[:8]
        size = int(mask, 16).bit_count()
        place = "default" if not size else f"{_dotted(destination)}/{size}"
        found.append(f"{place} via {_dotted(gateway)} dev {link}" if int(gateway, 16) else f"{place} dev {link}")
    return found


def _dotted(text: str) -> str:
    return ".".join(str(byte) for byte in int(text, 16).to_bytes(4, sys.byteorder))
