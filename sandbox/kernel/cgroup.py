"""Control groups: v1, v2 and hybrid, found from the mount table. See cgroups(7) and admin-guide/cgroup-v2.rst.

A group here is one directory `sandbox/<id>` in each hierarchy that has a controller we need; on pure v2 that is one
directory in all. The directories are ours alone: nothing in a cgroup that others made is changed, save that v2 needs
its controllers enabled in the root's subtree_control.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PARENT = "sandbox"
"""The directory below each hierarchy's root that holds our groups."""
CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "cpuacct", "freezer")
REQUIRED = ("cpu", "memory", "pids")
PERIOD = 100_000
"""Microseconds: the CFS bandwidth period, the kernel's default (scheduler/sched-bwc.rst)."""
_UNLIMITED_V1 = 1 << 62


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where each controller is.

    Attributes:
        mode: "v1", "v2" or "hybrid" (v1 controllers with a v2 tree beside them).
        v1: controller to mount point.
        v2: mount point of the unified tree, None without one.
        v2_controllers: controllers that the unified tree offers.
    """

    mode: str
    v1: dict[str, Path]
    v2: Path | None
    v2_controllers: frozenset[str]

    def has(self, controller: str) -> bool:
        """Whether a controller can be used at all."""
        return controller in self.v1 or controller in self.v2_controllers


def read_hierarchy(mounts: str) -> Hierarchy:
    """Parse the text of /proc/mounts."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    offered: frozenset[str] = frozenset()
    for line in mounts.splitlines():
        _, target, kind, options, *_ = line.split()
        if kind == "cgroup":
            for option in options.split(","):
                if option in CONTROLLERS:
                    v1.setdefault(option, Path(target))
        elif kind == "cgroup2" and v2 is None:
            v2 = Path(target)
            with suppress(OSError):
                offered = frozenset((v2 / "cgroup.controllers").read_text(encoding="ascii").split())
    mode = "v2" if not v1 else ("hybrid" if v2 else "v1")
    return Hierarchy(mode, v1, v2, offered)


@cache
def hierarchy() -> Hierarchy:
    """The hierarchy of this host."""
    return read_hierarchy(Path("/proc/mounts").read_text(encoding="utf-8"))


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
    """A flat keyed file, such as memory.events."""
    return {key: int(value) for key, value in (line.split() for line in _read(path).splitlines())}


def _read_if_there(path: Path) -> str | None:
    try:
        return _read(path)
    except OSError:
        return None


def _summed(io_stat: str) -> tuple[int, int]:
    """`rbytes` and `wbytes` of a nested keyed file, over its devices."""
    totals = {"rbytes": 0, "wbytes": 0}
    for line in io_stat.splitlines():
        for entry in line.split()[1:]:
            key, _, value = entry.partition("=")
            if key in totals:
                totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]


def _process_io(pid: int) -> tuple[int, int] | None:
    try:
        fields = dict(line.split(": ") for line in _read(Path(f"/proc/{pid}/io")).splitlines())
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, KeyError, ValueError):  # it has ended, or the kernel keeps no such account
        return None


class Group:
    """The control group of one sandbox."""

    def __init__(self, ident: str, *, where: Hierarchy | None = None) -> None:
        self.ident = ident
        self.where = where or hierarchy()
        self._removed = False

    def directories(self) -> list[Path]:
        """Every directory of the group, made or not; one per hierarchy, without repeats."""
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
            raise FileNotFoundError(2, f"the cgroup controller {controller} is not there")
        return directory / (v1 if controller in self.where.v1 else v2)

    def create(self) -> None:
        """Make the directories; existing ones are kept."""
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
        """A v1 cpuset is born empty, and takes no task before it has CPUs and memory nodes (cpuset(7))."""
        directory = self._directory("cpuset")
        if directory is None or "cpuset" not in self.where.v1:
            return
        for name in ("cpuset.cpus", "cpuset.mems"):
            for level in (directory.parent, directory):
                if not _read(level / name):
                    _write(level / name, _read(level.parent / name))

    def limit(self, *, cpus: float, memory: int, pids: int, cpuset: str | None) -> None:
        """Set the limits: CPUs as a bandwidth quota, memory in bytes with no swap on top, tasks, a CPU list."""
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
            # One victim would leave a half-dead server that still looks alive.
            _write(self._file("memory", "", "memory.oom.group"), 1)
        _write(self._file("pids", "pids.max", "pids.max"), pids)
        if cpuset is not None:
            _write(self._file("cpuset", "cpuset.cpus", "cpuset.cpus"), cpuset)

    def read_limits(self) -> tuple[float | None, int | None, int | None]:
        """CPUs, bytes and tasks as the kernel has them; None where there is no limit."""
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
        """Bytes of swap that may be used beside the memory; None where the host does not account swap."""
        if "memory" in self.where.v1:
            both = self._file("memory", "memory.memsw.limit_in_bytes", "")
            if not both.exists():
                return None
            return max(0, int(_read(both)) - int(_read(self._file("memory", "memory.limit_in_bytes", ""))))
        text = _read_if_there(self._file("memory", "", "memory.swap.max"))
        return None if text in (None, "max") else int(text or 0)

    def oom_group(self) -> bool | None:
        """Whether the kernel kills all of it where it would kill one; None where it knows no such thing (v1)."""
        if "memory" in self.where.v1:
            return None
        text = _read_if_there(self._file("memory", "", "memory.oom.group"))
        return None if text is None else text == "1"

    def cpuset(self) -> str | None:
        """CPUs that it may use, as cpuset(7) lists them; None where that cannot be said."""
        if not self.where.has("cpuset"):
            return None
        return _read_if_there(self._file("cpuset", "cpuset.effective_cpus", "cpuset.cpus.effective"))

    def join_files(self) -> list[Path]:
        """Files to which a single-threaded process writes "0" to move itself in; the group need not be there yet.

        On v1 that is `tasks`: moving by cgroup.procs waits for a grace period there, 6 to 10 ms each.
        """
        v2 = None if self.where.v2 is None else self.where.v2 / PARENT / self.ident
        return [directory / ("cgroup.procs" if directory == v2 else "tasks") for directory in self.directories()]

    def pids(self) -> list[int]:
        """Every process in the group, this host's numbers; empty when the group is gone."""
        found: set[int] = set()
        for directory in self.directories() if not self._removed else ():
            with suppress(FileNotFoundError, ProcessLookupError):
                found.update(int(line) for line in _read(directory / "cgroup.procs").split())
        return sorted(found)

    def freeze(self, timeout: float = 5.0) -> None:
        """Hold all of it still, and wait until it is (v1/freezer-subsystem.rst; cgroup.freeze of cgroup-v2.rst).

        Raises:
            OSError: ENOENT, the group is gone, or the host has no freezer.
            TimeoutError: a process does not stop (in uninterruptible sleep, say); it is let go again.
        """
        deadline = time.monotonic() + timeout
        self._switch_freezer(frozen=True)
        while not self.frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise TimeoutError(f"control group {self.ident} does not freeze")
            time.sleep(0.002)
            # Asked once, v1 may never get there: who is about to wait for the exec of its child (vfork(2)) when it is
            # told to stop overhears it, and its child, which has stopped, keeps it waiting for good.
            self._switch_freezer(frozen=True)

    def thaw(self) -> None:
        """Let it go on; nothing happens where it is not frozen.

        Raises:
            OSError: ENOENT, the group is gone, or the host has no freezer.
        """
        self._switch_freezer(frozen=False)

    def frozen(self) -> bool:
        """Whether all of it is held still now; False when the group is gone or the host has no freezer."""
        try:
            path, v1 = self._freezer()
            if v1:
                return _read(path) == "FROZEN"
            return _keyed(path.with_name("cgroup.events"))["frozen"] == 1
        except (OSError, KeyError):
            return False

    def _freezer(self) -> tuple[Path, bool]:
        """The file that freezes, and whether it is v1's. On v2 freezing is no controller: every group can."""
        if "freezer" in self.where.v1:
            return self._file("freezer", "freezer.state", ""), True
        if self.where.v2 is None or self.where.mode != "v2":
            raise FileNotFoundError(2, "the cgroup controller freezer is not there")
        return self.where.v2 / PARENT / self.ident / "cgroup.freeze", False

    def _switch_freezer(self, *, frozen: bool) -> None:
        path, v1 = self._freezer()
        _write(path, ("FROZEN" if frozen else "THAWED") if v1 else int(frozen))

    def kill(self, timeout: float = 5.0) -> None:
        """SIGKILL to all of it, and wait until it is empty; a group that is gone is empty.

        Raises:
            TimeoutError: processes remain (in uninterruptible sleep, say).
        """
        deadline = time.monotonic() + timeout
        switch = None
        if self.where.v2 is not None and self.where.mode == "v2":
            switch = self.where.v2 / PARENT / self.ident / "cgroup.kill"
        pause = 0.0005
        while members := self.pids():
            if switch is not None and switch.exists():
                _write(switch, 1)
            else:
                for pid in members:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                # On v1 the frozen do not even die: what they got takes effect once they are let go.
                with suppress(OSError):
                    self.thaw()
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {members} of control group {self.ident} do not die")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def remove(self, timeout: float = 5.0) -> None:
        """Kill what is in it and remove the directories; idempotent.

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
                    # The last task's exit is accounted a moment after it was reaped: EBUSY until then.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(pause)
                    pause = min(pause * 2, 0.02)
                else:
                    break
        self._removed = True

    def usage(self) -> tuple[float | None, int | None, int | None]:
        """CPU seconds, bytes and tasks in use; None for what this host does not account."""
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
        """Bytes read from and written to block devices, all of them together.

        On v2 from io.stat. On v1 the sum of /proc/pid/io over its processes (proc_pid_io(5)): a process's figures
        contain those of its children that it has waited for, so only commands run beside the workload that have
        ended are missing.
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
        """Where the kernel counts its OOM kills, in a line `oom_kill N`; None without a controller of memory."""
        with suppress(OSError):
            return self._file("memory", "memory.oom_control", "memory.events")
        return None

    def events(self) -> dict[str, int]:
        """How often limits were met: `oom_kill`, `memory_max` (allocations that hit the limit), `pids_max`."""
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
    """Names below `sandbox/` in any hierarchy: the ids of our groups, whoever still knows them."""
    where = hierarchy()
    roots = {*where.v1.values(), *([where.v2] if where.v2 else [])}
    found: set[str] = set()
    for root in roots:
        with suppress(OSError):
            found.update(entry.name for entry in os.scandir(root / PARENT) if entry.is_dir())
    return sorted(found)


def remove_parent() -> None:
    """Remove `sandbox/` itself from each hierarchy once it is empty; a group that is left keeps it."""
    where = hierarchy()
    for root in {*where.v1.values(), *([where.v2] if where.v2 else [])}:
        with suppress(OSError):
            (root / PARENT).rmdir()
