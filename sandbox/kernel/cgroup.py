"""Control groups: v1, v2 and hybrid, found from the mount table. See cgroups(7) and admin-guide/cgroup-v2.rst.

A group is one directory `sandbox/<id>` in each hierarchy that has a controller we need; on pure v2 that is a single
directory. Cgroups made by others are not changed, except that on v2 the controllers are enabled in the root's
subtree_control.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandbox.kernel import procfs

PARENT = "sandbox"
"""The directory below each hierarchy's root that contains our groups."""
CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "cpuacct", "freezer")
REQUIRED = ("cpu", "memory", "pids")
PERIOD = 100_000
"""Microseconds: the CFS bandwidth period, the kernel's default (scheduler/sched-bwc.rst)."""
_UNLIMITED_V1 = 1 << 62


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The cgroup mount point of each controller.

    Attributes:
        mode: "v1", "v2" or "hybrid" (v1 controllers with a v2 tree beside them).
        v1: controller to mount point.
        v2: mount point of the unified tree; None if there is none.
        v2_controllers: controllers that the unified tree offers.
    """

    mode: str
    v1: dict[str, Path]
    v2: Path | None
    v2_controllers: frozenset[str]

    def has(self, controller: str) -> bool:
        """Return whether a controller can be used."""
        return controller in self.v1 or controller in self.v2_controllers


def read_hierarchy(mounts: str) -> Hierarchy:
    """Parse the text of /proc/mounts."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    offered: frozenset[str] = frozenset()
    for mount in procfs.mounts(mounts):
        if mount.type == "cgroup":
            for option in mount.options:
                if option in CONTROLLERS:
                    v1.setdefault(option, Path(mount.target))
        elif mount.type == "cgroup2" and v2 is None:
            v2 = Path(mount.target)
            with suppress(OSError):
                offered = frozenset((v2 / "cgroup.controllers").read_text(encoding="ascii").split())
    mode = "v2" if not v1 else ("hybrid" if v2 else "v1")
    return Hierarchy(mode, v1, v2, offered)


@cache
def hierarchy() -> Hierarchy:
    """Return the hierarchy of this host."""
    return read_hierarchy(Path("/proc/mounts").read_text(encoding="utf-8"))


def places(pid: int) -> dict[str, Path]:
    """The directory of a process's group for each controller; the key of the unified tree is "".

    Raises:
        OSError: there is no such process.
    """
    where = hierarchy()
    paths = procfs.groups(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"))
    roots = where.v1 | ({} if where.v2 is None else {"": where.v2})
    return {name: root / paths[name].lstrip("/") for name, root in roots.items() if name in paths}


def _write(path: Path, value: int | str) -> None:
    # One write(2) with no truncation: cgroup files take a whole value per call.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _keyed(path: Path) -> dict[str, int]:
    """Parse a flat keyed file, such as memory.events."""
    return procfs.keyed(_read(path))


def _read_if_there(path: Path) -> str | None:
    try:
        return _read(path)
    except OSError:
        return None


def _summed(io_stat: str) -> tuple[int, int]:
    """Sum `rbytes` and `wbytes` of a nested keyed file (io.stat) over its devices."""
    totals = {"rbytes": 0, "wbytes": 0}
    for line in io_stat.splitlines():
        for entry in line.split()[1:]:
            key, _, value = entry.partition("=")
            if key in totals:
                totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]


def _process_io(pid: int) -> tuple[int, int] | None:
    try:
        fields = procfs.fields(_read(Path(f"/proc/{pid}/io")))
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, KeyError, ValueError):  # it has ended, or the kernel has no I/O accounting
        return None


class Group:
    """The control group of one sandbox."""

    def __init__(self, ident: str, *, where: Hierarchy | None = None) -> None:
        self.ident = ident
        self.where = where or hierarchy()
        self._removed = False

    def directories(self) -> list[Path]:
        """Return the group's directory in each hierarchy, whether it exists or not."""
        found: dict[Path, None] = {}
        for controller in CONTROLLERS:
            path = self._directory(controller)
            if path is not None:
                found[path] = None
        return list(found)

    def _directory(self, controller: str) -> Path | None:
        if controller in self.where.v1:
            return self.where.v1[controller] / PARENT / self.ident
        if self.where.v2 is not None and controller in self.where.v2_controllers:
            return self.where.v2 / PARENT / self.ident
        return None

    def _file(self, controller: str, v1: str, v2: str) -> Path:
        directory = self._directory(controller)
        if directory is None:
            raise FileNotFoundError(2, f"the cgroup controller {controller} is not available")
        return directory / (v1 if controller in self.where.v1 else v2)

    def create(self) -> None:
        """Create the directories; existing ones are kept."""
        self._removed = False
        for directory in self.directories():
            parent = directory.parent
            if not parent.is_dir():
                parent.mkdir(exist_ok=True)
            self._prepare_parent(parent)
            directory.mkdir(exist_ok=True)
        self._prepare_cpuset()

    def _prepare_parent(self, parent: Path) -> None:
        if self.where.v2 is None or not parent.is_relative_to(self.where.v2):
            return
        wanted = [name for name in ("cpu", "memory", "pids", "cpuset", "io") if name in self.where.v2_controllers]
        for level in (self.where.v2, parent):
            enabled = _read(level / "cgroup.subtree_control").split()
            for name in wanted:
                if name not in enabled:
                    _write(level / "cgroup.subtree_control", f"+{name}")

    def _prepare_cpuset(self) -> None:
        """Give a new v1 cpuset CPUs and memory nodes: it starts without any, and accepts no task (cpuset(7))."""
        directory = self._directory("cpuset")
        if directory is None or "cpuset" not in self.where.v1:
            return
        for name in ("cpuset.cpus", "cpuset.mems"):
            for level in (directory.parent, directory):
                if not _read(level / name):
                    _write(level / name, _read(level.parent / name))

    def limit(self, *, cpus: float, memory: int, pids: int, cpuset: str | None) -> None:
        """Set the limits: CPUs (as a bandwidth quota), bytes of memory without swap, tasks, and a list of CPUs."""
        quota = max(1000, round(cpus * PERIOD))
        if "cpu" in self.where.v1:
            _write(self._file("cpu", "cpu.cfs_period_us", ""), PERIOD)
            _write(self._file("cpu", "cpu.cfs_quota_us", ""), quota)
        else:
            _write(self._file("cpu", "", "cpu.max"), f"{quota} {PERIOD}")
        if "memory" in self.where.v1:
            _write(self._file("memory", "memory.limit_in_bytes", ""), memory)
            swap = self._file("memory", "memory.memsw.limit_in_bytes", "")
            if swap.exists():
                _write(swap, memory)
        else:
            _write(self._file("memory", "", "memory.max"), memory)
            swap = self._file("memory", "", "memory.swap.max")
            if swap.exists():
                _write(swap, 0)
            # Killing one process alone would leave a broken server that still looks alive.
            _write(self._file("memory", "", "memory.oom.group"), 1)
        _write(self._file("pids", "pids.max", "pids.max"), pids)
        if cpuset is not None:
            _write(self._file("cpuset", "cpuset.cpus", "cpuset.cpus"), cpuset)

    def read_limits(self) -> tuple[float | None, int | None, int | None]:
        """Return the limits on CPUs, bytes and tasks as the kernel has them; None where there is no limit."""
        if "cpu" in self.where.v1:
            quota = int(_read(self._file("cpu", "cpu.cfs_quota_us", "")))
            period = int(_read(self._file("cpu", "cpu.cfs_period_us", "")))
            cpus = None if quota < 0 else quota / period
        else:
            first, second = _read(self._file("cpu", "", "cpu.max")).split()
            cpus = None if first == "max" else int(first) / int(second)
        text = _read(self._file("memory", "memory.limit_in_bytes", "memory.max"))
        memory = None if text == "max" or int(text) >= _UNLIMITED_V1 else int(text)
        text = _read(self._file("pids", "pids.max", "pids.max"))
        return cpus, memory, None if text == "max" else int(text)

    def swap_limit(self) -> int | None:
        """Return how many bytes of swap may be used beside the memory; None if the host does not account for swap."""
        if "memory" in self.where.v1:
            both = self._file("memory", "memory.memsw.limit_in_bytes", "")
            if not both.exists():
                return None
            return max(0, int(_read(both)) - int(_read(self._file("memory", "memory.limit_in_bytes", ""))))
        text = _read_if_there(self._file("memory", "", "memory.swap.max"))
        return None if text in (None, "max") else int(text or 0)

    def oom_group(self) -> bool | None:
        """Return whether an OOM kill ends the whole group; None if the kernel has no such setting (v1)."""
        if "memory" in self.where.v1:
            return None
        text = _read_if_there(self._file("memory", "", "memory.oom.group"))
        return None if text is None else text == "1"

    def cpuset(self) -> str | None:
        """Return the CPUs that the group may use, as a cpuset(7) list; None if the host has no cpuset controller."""
        if not self.where.has("cpuset"):
            return None
        return _read_if_there(self._file("cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective"))

    def join_files(self) -> list[Path]:
        """Return the files to which a single-threaded process writes "0" to join; the group need not exist yet.

        On v1 that is `tasks`: a write to cgroup.procs waits for an RCU grace period there, 6 to 10 ms each.
        """
        v2 = None if self.where.v2 is None else self.where.v2 / PARENT / self.ident
        return [directory / ("cgroup.procs" if directory == v2 else "tasks") for directory in self.directories()]

    def pids(self) -> list[int]:
        """Return the pids (on the host) of all processes in the group; empty if the group does not exist."""
        found: set[int] = set()
        for directory in self.directories() if not self._removed else ():
            with suppress(FileNotFoundError, ProcessLookupError):
                found.update(int(line) for line in _read(directory / "cgroup.procs").split())
        return sorted(found)

    def freeze(self, timeout: float = 5.0) -> None:
        """Freeze the group and wait until it is frozen (v1/freezer-subsystem.rst; cgroup.freeze of cgroup-v2.rst).

        Raises:
            OSError: ENOENT, the group does not exist, or the host has no freezer.
            TimeoutError: a process did not freeze (it is in uninterruptible sleep, say). The group is thawed again.
        """
        deadline = time.monotonic() + timeout
        self._switch_freezer(frozen=True)
        while not self.frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise TimeoutError(f"control group {self.ident} could not be frozen in time")
            time.sleep(0.002)
            # Repeated, because v1 may never get there: a process that is about to wait for its child's exec (vfork(2))
            # misses the request, and the child, which is frozen already, keeps it waiting.
            self._switch_freezer(frozen=True)

    def thaw(self) -> None:
        """Thaw the group. Does nothing if it is not frozen.

        Raises:
            OSError: ENOENT, the group does not exist, or the host has no freezer.
        """
        self._switch_freezer(frozen=False)

    def frozen(self) -> bool:
        """Return whether the whole group is frozen; False if it does not exist or the host has no freezer."""
        try:
            path, v1 = self._freezer()
            if v1:
                return _read(path) == "FROZEN"
            return _keyed(path.with_name("cgroup.events"))["frozen"] == 1
        except (OSError, KeyError):
            return False

    def _freezer(self) -> tuple[Path, bool]:
        """Return the file that freezes the group, and whether it is v1's. On v2 it needs no controller."""
        if "freezer" in self.where.v1:
            return self._file("freezer", "freezer.state", ""), True
        if self.where.v2 is None or self.where.mode != "v2":
            raise FileNotFoundError(2, "the cgroup controller freezer is not available")
        return self.where.v2 / PARENT / self.ident / "cgroup.freeze", False

    def _switch_freezer(self, *, frozen: bool) -> None:
        path, v1 = self._freezer()
        _write(path, ("FROZEN" if frozen else "THAWED") if v1 else int(frozen))

    def kill(self, timeout: float = 5.0) -> None:
        """Send SIGKILL to every process in the group, and wait until it is empty. A group that does not exist is empty.

        Raises:
            TimeoutError: processes remain (they are in uninterruptible sleep, say).
        """
        deadline = time.monotonic() + timeout
        switch = None
        if self.where.v2 is not None and self.where.mode == "v2":
            switch = self.where.v2 / PARENT / self.ident / "cgroup.kill"
        pause = 0.0005
        while members := self.pids():
            if switch is not None:
                with suppress(FileNotFoundError):
                    _write(switch, 1)
            else:
                for pid in members:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                # On v1 a frozen process does not die: its signals are handled once it is thawed.
                with suppress(OSError):
                    self.thaw()
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {members} of control group {self.ident} did not end after SIGKILL")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def remove(self, timeout: float = 5.0) -> None:
        """Kill the group's processes and remove its directories. Idempotent.

        Raises:
            OSError: a directory stays busy.
        """
        if self._removed:
            return
        self.kill(timeout)
        deadline = time.monotonic() + timeout
        for directory in self.directories():
            pause = 0.0005
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    # A task is charged for a moment after it was reaped: EBUSY until then.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(pause)
                    pause = min(pause * 2, 0.02)
                else:
                    break
        self._removed = True

    def usage(self) -> tuple[float | None, int | None, int | None]:
        """Return the CPU seconds, bytes and tasks in use; None for what this host does not account for."""
        cpu: float | None = None
        memory: int | None = None
        tasks: int | None = None
        with suppress(OSError):
            if "cpuacct" in self.where.v1:
                cpu = int(_read(self._file("cpuacct", "cpuacct.usage", ""))) / 1e9
            else:
                cpu = _keyed(self._file("cpu", "", "cpu.stat"))["usage_usec"] / 1e6
        with suppress(OSError):
            memory = int(_read(self._file("memory", "memory.usage_in_bytes", "memory.current")))
        with suppress(OSError):
            tasks = int(_read(self._file("pids", "pids.current", "pids.current")))
        return cpu, memory, tasks

    def block_io(self) -> tuple[int | None, int | None]:
        """Return the bytes read from and written to all block devices.

        On v2 from io.stat. On v1 the sum of /proc/pid/io over the processes (proc_pid_io(5)): a process's figures
        include those of the children that it has waited for, so only ended commands that ran beside the workload are
        missing.
        """
        if self.where.v2 is not None and "io" in self.where.v2_controllers and not self.where.v1:
            with suppress(OSError):
                return _summed(_read(self.where.v2 / PARENT / self.ident / "io.stat"))
            return None, None
        members = [found for pid in self.pids() if (found := _process_io(pid)) is not None]
        if not members:
            return None, None
        return sum(read for read, _ in members), sum(written for _, written in members)

    def oom_file(self) -> Path | None:
        """Return the file in which the kernel counts OOM kills, in a line `oom_kill N`; None without the controller."""
        with suppress(OSError):
            return self._file("memory", "memory.oom_control", "memory.events")
        return None

    def events(self) -> dict[str, int]:
        """Count the times a limit was hit: `oom_kill`, `memory_max` (allocations that hit the limit), `pids_max`."""
        found: dict[str, int] = {}
        with suppress(OSError):
            if "memory" in self.where.v1:
                found["memory_max"] = int(_read(self._file("memory", "memory.failcnt", "")))
                control = _keyed(self._file("memory", "memory.oom_control", ""))
                found["oom_kill"] = control.get("oom_kill", 0)
            else:
                events = _keyed(self._file("memory", "", "memory.events"))
                found["memory_max"], found["oom_kill"] = events["max"], events["oom_kill"]
        with suppress(OSError):
            found["pids_max"] = _keyed(self._file("pids", "pids.events", "pids.events"))["max"]
        return found


def all_groups() -> list[str]:
    """Return the ids of all our groups: the names below `sandbox/` in any hierarchy, with or without a record."""
    where = hierarchy()
    roots = {*where.v1.values(), *([where.v2] if where.v2 else [])}
    found: set[str] = set()
    for root in roots:
        with suppress(OSError):
            found.update(entry.name for entry in os.scandir(root / PARENT) if entry.is_dir())
    return sorted(found)


def remove_parent() -> None:
    """Remove `sandbox/` itself from each hierarchy where it is empty."""
    where = hierarchy()
    for root in {*where.v1.values(), *([where.v2] if where.v2 else [])}:
        with suppress(OSError):
            (root / PARENT).rmdir()
