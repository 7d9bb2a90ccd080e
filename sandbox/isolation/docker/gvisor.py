"""A Docker container under gVisor's runtime runsc: the differences from the default runtime."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import EngineError, SandboxError
from sandbox.host.docker import Engine, RefusalError
from sandbox.isolation.base import Stats
from sandbox.isolation.docker import cgroup, mounts
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.spec import Limits

if TYPE_CHECKING:
    from sandbox.isolation.inspection import View

_READ_LIMITS = "ulimit -p; stat -f -c '%b %S' /tmp"
"""`ulimit -p` is RLIMIT_NPROC in dash(1); runsc of 2022 has no /proc/self/limits."""
_LIMITS = re.compile(r"(\d+|unlimited)\n(\d+) (\d+)")
_ASK_TIMEOUT = 30.0
"""Seconds."""


class GVisorSandbox(ContainerSandbox):
    """One container under runsc."""

    kernel_shared = False

    def _sees_mounts(self, pid: int) -> int:
        """Return the pid of the gofer, the process that opens the host's files for gVisor's kernel."""
        group = cgroup.find(self._container, pid)
        for one in group.pids() if group is not None else ():
            with suppress(OSError):
                if Path(f"/proc/{one}/cmdline").read_bytes().startswith(b"runsc-gofer"):
                    return one
        raise mounts.UnseenError("gVisor's gofer cannot be seen on this host, so its mounts cannot be checked")

    def limits(self) -> Limits:
        """Return CPU and memory limits of gVisor's control group, and process and disk limits read inside."""
        around = super().limits()
        state = self.state()
        if not state.running or state.paused:
            return Limits(around.cpus, around.memory, None, around.source, around.disk)
        said = self._ask(_READ_LIMITS).decode("ascii", "replace").strip()
        match = _LIMITS.fullmatch(said)
        if match is None:
            raise EngineError(f"the limits cannot be read inside: {said!r}")
        pids, blocks, size = match.groups()
        return Limits(
            around.cpus,
            around.memory,
            None if pids == "unlimited" else int(pids),
            f"{around.source}, RLIMIT_NPROC and statfs inside",
            int(blocks) * int(size),
        )

    def _ask(self, script: str) -> bytes:
        """Run a shell inside and return what it prints.

        Raises:
            EngineError: it cannot be run, or is interrupted. If the sandbox ends meanwhile, runsc reports this like a
                command that does not exist.
        """
        try:
            found = self.exec(["/bin/sh", "-c", script], timeout=_ASK_TIMEOUT)
        except (SandboxError, TimeoutError) as error:
            raise EngineError(f"nothing can be read inside {self.record.name}: {error}") from error
        if found.exit_code != 0:
            raise EngineError(f"nothing can be read inside {self.record.name}: {found.stdout + found.stderr!r}")
        return found.stdout

    def stats(self) -> Stats:
        """Return the usage including gVisor's kernel; the host cannot see the number of processes inside."""
        found = super().stats()
        return Stats(found.cpu_seconds, found.memory, None, found.received, found.sent, found.read, found.written)

    def kill(self, number: int) -> None:
        if number == signal.SIGKILL:
            release(self.engine, self.name)
        super().kill(number)

    def _view(self, pid: int | None) -> View:
        """Return a view of the init, as gVisor's kernel shows it to a command inside."""
        from sandbox.isolation import inspection

        asked = pid is not None and not self.state().paused
        return inspection.inside(self._ask(inspection.question("1")).decode("utf-8", "replace") if asked else None)

    def remove(self) -> None:
        release(self.engine, self.name)
        super().remove()


def release(engine: Engine, container: str) -> None:
    """Unpause a container: runsc 2022 cannot signal a paused one, and dockerd then waits 10 s for its removal."""
    with suppress(RefusalError), engine.talking("the container could not be unpaused") as api:
        api.unpause(container)
