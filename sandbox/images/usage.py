"""Who uses an image: recorded sandboxes, processes, and mounts in any namespace."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sandbox.images.cache import Entry
from sandbox.store import Store


def users(entry: Entry) -> list[str]:
    """What uses an entry now, a few words each; empty when nothing does.

    A sandbox counts from its record on, running or not: its driver has put the image's path or digest into it.
    """
    found = [
        f"sandbox {record.name}"
        for record in Store().records()
        if entry.directory.name in (text := json.dumps(record.data)) or entry.digest in text
    ]
    return [*found, *_processes(entry.directory)]


def _processes(directory: Path) -> Iterator[str]:
    """Processes whose root, working directory, program or open files are inside, or that have it mounted."""
    # In another mount namespace, or below another root, the path has another beginning; its last part stays.
    marks = (f"/{directory.name}/", f"/{directory.name}")
    seen: set[tuple[int, int]] = set()
    ours = _identity(Path("/proc/self/ns/mnt"))
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        process = Path("/proc", pid)
        with suppress(OSError):  # it ended meanwhile, or it is a kernel thread
            links = [process / "root", process / "cwd", process / "exe", *(process / "fd").iterdir()]
            targets = [_link(link) for link in links]
            if any(marks[0] in target or target.endswith(marks[1]) for target in targets):
                yield f"process {pid} ({_name(process)})"
                continue
            identity = _identity(process / "ns/mnt")
            if identity in seen:
                continue
            seen.add(identity)
            table = (process / "mountinfo").read_text(encoding="utf-8", errors="replace")
            points = [line.split()[4] for line in table.splitlines() if marks[0] in line]
            if points and identity == ours:
                yield f"a mount at {points[0]}"
            elif points:
                yield f"a mount of process {pid} ({_name(process)})"


def _identity(namespace: Path) -> tuple[int, int]:
    """What tells namespaces apart (namespaces(7))."""
    status = namespace.stat()
    return status.st_dev, status.st_ino


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name(process: Path) -> str:
    return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
