"""The stressor: a program that tries to exceed the limits of the sandbox it runs in, up to a bound of its own.

As with `inside`, its source is passed to the sandbox's own Python. It uses only the standard library, and answers in
the same form.
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
    """Print an answer as one line of JSON."""
    os.write(1, (TAG + json.dumps(answer) + "\n").encode())


def reason(error: OSError) -> str:
    """Return the symbolic name of an error."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def read(path: str) -> str | None:
    """Return the text of a small file, or None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536)
    except OSError:
        return None


def memory(asked: dict[str, Any]) -> None:
    """Allocate memory up to a bound and touch every page; report the amount reached."""
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:  # to be the first that the OOM killer kills
            stream.write("1000")
    except OSError as error:
        say({"note": reason(error)})
    step, bound = 16 << 20, asked["bytes"]
    # Twice the bound leaves room for the interpreter, and ends this program even if the loop below were wrong.
    resource.setrlimit(resource.RLIMIT_AS, (bound * 2 + (256 << 20),) * 2)
    kept, held = [], 0
    # The kernel fills large pieces at a time: if the pages were touched one by one, a small guest would evict this
    # program again and again before it gave up.
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
    """Fork children up to a bound; they wait, and end with this process at the latest."""
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
                os.read(reader, 1)  # end of file when the parent closes its end or has ended
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
    """Report the counters of this sandbox's cgroups (version 2), and the number of processes that are not root's.

    Each file is read from the nearest cgroup upwards that has it, as that group's limit applies.
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
    others = 0  # this program runs as root, and is not counted
    for entry in os.listdir("/proc"):
        try:
            others += entry.isdigit() and os.stat(f"/proc/{entry}").st_uid != os.getuid()
        except OSError:
            continue
    say({"counters": found, "processes": others})


MODES = {"memory": memory, "forks": forks, "counters": counters}

if __name__ == "__main__":
    MODES[sys.argv[1]](json.loads(sys.argv[2]))
