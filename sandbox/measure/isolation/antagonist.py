"""The antagonist: runs inside a throw-away sandbox and takes more than was granted, up to a bound of its own.

Like `inside`, its text is handed to the sandbox's own Python: standard library alone, nothing shared but the form of
the answers.
"""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import resource
import signal
import sys
import time
from typing import Any

TAG = "sandbox-probe "
"""The same as in `inside`."""


def say(answer: dict[str, Any]) -> None:
    """One line of JSON."""
    os.write(1, (TAG + json.dumps(answer) + "\n").encode())


def reason(error: OSError) -> str:
    """An error's symbolic name."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def read(path: str) -> str | None:
    """A small file's text, None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536)
    except OSError:
        return None


def memory(asked: dict[str, Any]) -> None:
    """Take memory, every page of it touched, up to a bound of its own; say how far it came."""
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:  # the one to be killed, if one has to be
            stream.write("1000")
    except OSError as error:
        say({"note": reason(error)})
    step, bound = 16 << 20, asked["bytes"]
    # Twice the bound: room for the interpreter, and an end even if the loop below were wrong.
    resource.setrlimit(resource.RLIMIT_AS, (bound * 2 + (256 << 20),) * 2)
    kept, held = [], 0
    # Filled by the kernel, a large piece at a time: page by page from here, a small guest would first evict this very
    # program, again and again, before it gives up.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    try:
        while held < bound:
            size = min(step, bound - held)
            kept.append(mmap.mmap(-1, size, flags=flags))
            for page in range(0, size, mmap.PAGESIZE):
                kept[-1][page] = 0xA5
            held += size
            say({"held": held})
    except (OSError, MemoryError) as error:
        say({"held": held, "refused": reason(error) if isinstance(error, OSError) else "ENOMEM"})
        return
    time.sleep(asked["seconds"])
    say({"held": held, "complete": True})


def forks(asked: dict[str, Any]) -> None:
    """Fork up to a bound of its own; the children wait and do nothing, and end with this process at the latest."""
    reader, writer = os.pipe()
    children: list[int] = []
    refused = None
    gc.freeze()
    try:
        while len(children) < asked["count"]:
            child = os.fork()
            if child == 0:
                os.close(writer)
                signal.alarm(60)
                os.read(reader, 1)  # end of file when the parent closes, or is gone
                os._exit(0)
            children.append(child)
    except OSError as error:
        refused = reason(error)
    time.sleep(asked["seconds"])
    os.close(writer)
    for child in children:
        os.waitpid(child, 0)
    say({"forked": len(children), "refused": refused})


def counters(asked: dict[str, Any]) -> None:
    """What limits what runs in here, version 2, and how many processes are not root's.

    A file comes from the nearest control group upwards that has it: that is the one whose limit binds.
    """
    found: dict[str, int] = {}
    own = next((line[3:] for line in (read("/proc/self/cgroup") or "").splitlines() if line.startswith("0::")), "/")
    for name in asked["files"]:
        path = own.rstrip("/")
        while path and read(f"/sys/fs/cgroup{path}/{name}") is None:
            path = path.rpartition("/")[0]
        for entry in (read(f"/sys/fs/cgroup{path}/{name}") or "").splitlines():
            key, _, value = entry.rpartition(" ")
            if value.isdigit():
                found[f"{name}:{key}" if key else name] = int(value)
    for entry in (read("/proc/vmstat") or "").splitlines():
        if entry.startswith("oom_kill "):
            found["oom_kill"] = int(entry.split()[1])
    others = 0  # this runs as root and is no part of what is limited
    for entry in os.listdir("/proc"):
        try:
            others += entry.isdigit() and os.stat(f"/proc/{entry}").st_uid != os.getuid()
        except OSError:
            continue
    say({"counters": found, "processes": others})


MODES = {"memory": memory, "forks": forks, "counters": counters}

if __name__ == "__main__":
    MODES[sys.argv[1]](json.loads(sys.argv[2]))
