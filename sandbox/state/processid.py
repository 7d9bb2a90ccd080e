"""A process that cannot be mistaken for a later one: liveness is derived, never stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.kernel import procfs


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid.

    Attributes:
        pid: on this host.
        start_time: field 22 of /proc/pid/stat, clock ticks since boot.
        boot_id: /proc/sys/kernel/random/boot_id.
    """

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a live process; None when there is none."""
        start = start_time(pid)
        return None if start is None else cls(pid, start, boot_id())

    def alive(self) -> bool:
        """Tell whether that very process still runs (a zombie does not)."""
        return self.boot_id == boot_id() and start_time(self.pid) == self.start_time

    def within(self, group: str) -> bool:
        """Tell whether that very process still runs, and in a control group of that name, or below one.

        A record on disk may name any process of the host; which control group that one is in is the kernel's word.

        Args:
            group: the last parts of the group's path, such as "sandbox/0123456789ab"; see cgroups(7), /proc/pid/cgroup.
        """
        try:
            text = Path(f"/proc/{self.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        paths = (line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2)
        # Asked last: had the pid changed hands before the look at its groups, it shows now.
        return any(f"/{group}/" in f"{path}/" for path in paths) and self.alive()


def boot_id() -> str:
    """The id of this boot of this kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/pid/stat; None when the process is gone or a zombie."""
    try:
        stat = procfs.stat(Path(f"/proc/{pid}/stat").read_bytes())
    except OSError:
        return None
    return None if stat.state in ("Z", "X") else stat.start
