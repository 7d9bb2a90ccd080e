"""Find the users of an image: processes, and mounts in any namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sandbox.images.cache import Entry
from sandbox.kernel import procfs


def users(entry: Entry) -> list[str]:
    """Return what uses an entry now, a few words each; empty if nothing does."""
    return list(_processes(entry.directory))


def _processes(directory: Path) -> Iterator[str]:
    """Find processes with their root, working directory, program or open files in a directory, or with mounts of it."""
    marks = tuple(f"{path}/" for path in {os.path.realpath(directory), _within_filesystem(directory)})
    seen: set[tuple[int, int]] = set()
    ours = _identity(Path("/proc/self/ns/mnt"))
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        process = Path("/proc", pid)
        with suppress(OSError):  # it ended meanwhile, or it is a kernel thread
            links = [process / "root", process / "cwd", process / "exe", *(process / "fd").iterdir()]
            if any(f"{_link(link)}/".startswith(marks) for link in links):
                yield f"process {pid} ({_name(process)})"
                continue
            identity = _identity(process / "ns/mnt")
            if identity in seen:
                continue
            seen.add(identity)
            table = procfs.mounts((process / "mountinfo").read_bytes().decode("utf-8", "surrogateescape"))
            points = [mount.target for mount in table if any(mark in text for mark in marks for text in _places(mount))]
            if points and identity == ours:
                yield f"a mount at {points[0]}"
            elif points:
                yield f"a mount of process {pid} ({_name(process)})"


def _places(mount: procfs.Mount) -> Iterator[str]:
    """Return the paths in a mount: its root, its target, and those of an overlay in its options."""
    yield from (f"{mount.root}/", f"{mount.target}/", *mount.options)


def _within_filesystem(directory: Path) -> str:
    """Return a path from the root of its file system, the same in every mount namespace (proc(5), mountinfo)."""
    real = os.path.realpath(directory)
    found = ("/", "/")
    for mount in procfs.own_mounts():
        if f"{real}/".startswith(mount.target.rstrip("/") + "/") and len(mount.target) >= len(found[1]):
            found = (mount.root or "/", mount.target)  # of several mounts on one point the last one counts
    return os.path.normpath(f"{found[0]}/{os.path.relpath(real, found[1])}")


def _identity(namespace: Path) -> tuple[int, int]:
    """Return the device and inode that identify a namespace (namespaces(7))."""
    status = namespace.stat()
    return status.st_dev, status.st_ino


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name(process: Path) -> str:
    return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
