"""Identify a process so that it cannot be mistaken for a later one with the same pid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.kernel import procfs


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, identified unambiguously even if its pid is reused.

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
        """Return the identity of a live process; None if it does not exist."""
        start = start_time(pid)
        return None if start is None else cls(pid, start, boot_id())

    def alive(self) -> bool:
        """Return whether this process still runs (a zombie does not)."""
        return self.boot_id == boot_id() and start_time(self.pid) == self.start_time

    def within(self, group: str) -> bool:
        """Return whether this process still runs, in a control group of that name or below one.

        A record on disk may name any process of the host, but the control group is reported by the kernel.

        Args:
            group: the last parts of the group's path, such as "sandbox/0123456789ab"; see cgroups(7), /proc/pid/cgroup.
        """
        try:
            text = Path(f"/proc/{self.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        paths = (line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2)
        # Checked last: this shows if the pid was reused before its groups were read.
        return any(f"/{group}/" in f"{path}/" for path in paths) and self.alive()


def boot_id() -> str:
    """Return the id of the host's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_time(pid: int) -> int | None:
    """Return field 22 of /proc/pid/stat; None if the process is gone or a zombie."""
    try:
        stat = procfs.stat(Path(f"/proc/{pid}/stat").read_bytes())
    except OSError:
        return None
    return None if stat.state in ("Z", "X") else stat.start
