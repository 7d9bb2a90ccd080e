"""Runs inside a virtual machine, as root of a kernel with nothing but cgroup v2, and prints what it saw as JSON.

`sandbox.kernel` lies beside it. Each limit is read back, and then pushed past by a quarter by a workload behind all
walls of the namespace level; what is told are the kernel's own counters. Standard library only; the host judges.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from sandbox.kernel import enter, rootfs, seccomp  # noqa: E402 - found by the line above
from sandbox.kernel.cgroup import Group, hierarchy  # noqa: E402

MIB = 1024 * 1024
CPUS, MEMORY, PIDS, DISK = 0.5, 64 * MIB, 16, 8 * MIB
WALL = 2.0
"""Seconds of wall time for which a quarter too much CPU time is asked."""
UID, MAP_BASE = 10001, 0x70000000
ROOT = "/run/root"
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
TIMEOUT = 60.0

ALLOCATE = (
    "import sys\nheld=[]\n"
    f"for n in range({MEMORY * 5 // 4 // MIB}): held.append(bytearray(b'x') * {MIB})\nprint('allocated', len(held))"
)
FORK = (
    f"import os,time\nn=0\ntry:\n while n < {PIDS * 5 // 4}:\n  if not os.fork(): time.sleep(30); os._exit(0)\n  n+=1\n"
    "except OSError as e: print('refused', e.errno, n, flush=True)\nelse: print('forked', n, flush=True)\n"
    "time.sleep(30)"
)
BURN = (
    "import time\nbegin=time.monotonic()\n"
    f"while time.process_time() < {CPUS * WALL * 1.25}: pass\nprint('burnt', time.monotonic()-begin)"
)
WRITE = (
    "import os\nn=0\nf=os.open('/tmp/fill',os.O_CREAT|os.O_WRONLY)\n"
    f"try:\n while n < {DISK * 5 // 4}: n+=os.write(f,bytes(65536))\nexcept OSError as e: print('refused',e.errno,n)\n"
    "else: print('written', n)"
)
LOOK = (
    "import os,json\ns={l.split(':')[0]:l.split(':')[1].strip() for l in open('/proc/self/status')}\n"
    "def tried(f):\n try: f(); return 0\n except OSError as e: return e.errno\n"
    "print(json.dumps({'status':{k:s[k] for k in ('Uid','CapEff','CapBnd','NoNewPrivs','Seccomp')},"
    "'pids':sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[:1],'cgroup':open('/proc/self/cgroup').read(),"
    "'hostname':os.uname().nodename,'root':tried(lambda:open('/etc/new','w')),"
    "'group':tried(lambda:open('/sys/fs/cgroup/pids.max','w'))}))"
)


def keyed(group: Group, name: str) -> dict[str, int]:
    """A flat keyed file of a group."""
    text = (group.directories()[0] / name).read_text()
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


class Workload:
    """A command in namespaces and a group of its own, as the namespace level makes it."""

    def __init__(self, name: str, script: str, **limits: Any) -> None:
        self.group = Group(name)
        self.group.create()
        self.group.limit(**({"cpus": CPUS, "memory": MEMORY, "pids": PIDS, "cpuset": None} | limits))
        self.read_back = self.group.read_limits()
        self.log = f"/run/{name}.log"
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        plan = enter.Plan(
            argv=("/usr/bin/tini", "--", *PYTHON, script),
            env=(("PATH", "/usr/bin:/bin"), ("HOME", "/tmp")),
            uid=UID,
            root=ROOT,
            outputs=(log, log),
            cgroup_files=tuple(str(path) for path in self.group.join_files()),
            hostname=name,
            layout=rootfs.Layout(tmpfs=(("/tmp", DISK, 0o1777), ("/run", MIB, 0o755))),
        )
        self.child = enter.spawn_namespaced(plan, MAP_BASE, lambda _: None)
        os.close(log)
        self.began = time.monotonic()
        self.child.release()

    def said(self) -> str:
        """What it has written."""
        return Path(self.log).read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait; that it was in vain shows in what is told afterwards."""
        deadline = time.monotonic() + TIMEOUT
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.child.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return 1000

    def end(self) -> None:
        """Kill and remove it."""
        self.group.kill()
        with suppress(ChildProcessError):
            os.waitpid(self.child.pid, 0)
        self.group.remove()


def memory() -> dict[str, Any]:
    """A quarter more than memory.max; and, as the control, the same with room for it."""
    found: dict[str, Any] = {}
    for name, limit in (("pushed", MEMORY), ("control", 2 * MEMORY)):
        workload = Workload(f"memory-{name}", ALLOCATE, memory=limit)
        code = workload.wait()
        peak = int((workload.group.directories()[0] / "memory.peak").read_text())
        found[name] = {
            "limits": workload.read_back,
            "swap": workload.group.swap_limit(),
            "oom_group": workload.group.oom_group(),
            "code": code,
            "said": workload.said(),
            "events": workload.group.events(),
            "counters": keyed(workload.group, "memory.events"),
            "peak": peak,
        }
        workload.end()
    return found


def pids() -> dict[str, Any]:
    """A quarter more processes than pids.max."""
    workload = Workload("pids", FORK)
    workload.until(lambda: "\n" in workload.said())
    found = {
        "limits": workload.read_back,
        "said": workload.said().split(),
        "events": workload.group.events(),
        "counters": keyed(workload.group, "pids.events"),
        "members": len(workload.group.pids()),
        "usage": workload.group.usage(),
    }
    begin = time.monotonic()
    workload.group.kill()
    found["killed_in"] = time.monotonic() - begin
    found["code"] = workload.wait()
    workload.end()
    found["left"] = [str(path) for path in workload.group.directories() if path.exists()]
    return found


def cpu() -> dict[str, Any]:
    """A quarter more CPU time than the quota has for some seconds."""
    workload = Workload("cpu", BURN)
    code = workload.wait()
    wall = time.monotonic() - workload.began
    stat = keyed(workload.group, "cpu.stat")
    found = {
        "limits": workload.read_back,
        "code": code,
        "said": workload.said().split(),
        "wall": wall,
        "usage": workload.group.usage()[0],
        "throttled": stat["nr_throttled"],
        "throttled_seconds": stat["throttled_usec"] / 1e6,
    }
    workload.end()
    return found


def disk() -> dict[str, Any]:
    """A quarter more than fits below /tmp."""
    workload = Workload("disk", WRITE)
    found = {"code": workload.wait(), "said": workload.said().split(), "limits": workload.read_back}
    workload.end()
    return found


def freeze() -> dict[str, Any]:
    """A busy loop, held still and let go."""
    workload = Workload("freeze", "while True: pass")
    group = workload.group

    def used(seconds: float) -> float:
        before = group.usage()[0] or 0.0
        time.sleep(seconds)
        return (group.usage()[0] or 0.0) - before

    running = used(0.5)
    group.freeze()
    found = {"running": running, "frozen": group.frozen(), "while_frozen": used(0.5)}
    group.thaw()
    found |= {"thawed": not group.frozen(), "after": used(0.5)}
    group.freeze()
    group.kill()  # v2 kills what is frozen
    found["code"] = workload.wait()
    workload.end()
    return found


def walls() -> dict[str, Any]:
    """What the workload sees of its walls."""
    workload = Workload("walls", LOOK)
    code = workload.wait()
    found = {"code": code, "said": workload.said()}
    workload.end()
    return found


def main() -> None:
    """Do all of it; a part that fails tells its traceback."""
    os.makedirs(ROOT)
    os.system(f"/usr/lib/sandbox-vm/busybox mount --bind / {ROOT}")
    where = hierarchy()
    seen: dict[str, Any] = {
        "mode": where.mode,
        "controllers": sorted(where.v2_controllers),
        "kernel": os.uname().release,
        "seccomp": len(seccomp.build()),
    }
    for part in (walls, memory, pids, cpu, disk, freeze):
        try:
            seen[part.__name__] = part()
        except Exception:
            seen[part.__name__] = {"failed": traceback.format_exc()}
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
