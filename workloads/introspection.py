"""The data of `/stats`: the server's own counters, and the kernel's data on its processes (proc(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workloads.application import Application


def report(app: Application) -> bytes:
    """Return the JSON document of `/stats`.

    `threads` counts the threads of the answering process; `processes` counts those that serve requests, so without the
    services.
    """
    from json import dumps

    family = _family()
    server = app.server_pid
    services = _descendants(family, app.services.supervisor) if app.services.supervisor else []
    ours = [pid for pid in _descendants(family, server) if pid not in services]
    document = {
        "model": app.model,
        "pid": os.getpid(),
        "server": server,
        "threads": _threads(os.getpid()),
        "processes": ours,
        "coroutines": app.coroutines() if app.coroutines else None,
        "requests": app.requests(),
        "connections": app.open_connections(),
        "services": {name.removeprefix("rpc-"): pid for pid in services if (name := _name(pid)).startswith("rpc-")},
    }
    return dumps(document).encode("ascii") + b"\n"


def _family() -> dict[int, int]:
    """Return the parent of each process, by pid."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    parents[int(entry)] = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
    return parents


def _descendants(parents: dict[int, int], root: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
            return comm.read().strip()
    except OSError:
        return ""
