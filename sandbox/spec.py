"""The specification of a sandbox: one frozen dataclass for every level. `sandbox.request` makes it of user input."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MIB = 1024 * 1024
MIN_MEMORY = 16 * MIB
"""Bytes. A Python server with its workers needs about 12 MiB; with less, none of the workloads starts."""
MIN_DISK = MIB
MIN_PIDS = 8
MAX_PIDS = 4_194_304
"""The kernel's upper limit, PID_MAX_LIMIT on 64 bit (proc(5), pid_max)."""

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL, docker-stop(1)'s default."""
DEFAULT_CPUS = 1.0
DEFAULT_MEMORY = 256 * MIB
DEFAULT_PIDS = 128
DEFAULT_DISK = 64 * MIB
DEFAULT_PORT = 8080

LISTEN = "@listen@"
"""Placeholder in an argv for the address to listen on, until the sandbox's address is known."""

SANDBOX_UID = 10001
"""The user that the workload runs as inside, at every level: `sandbox` in the root filesystem's passwd."""

APP_DIR = "/app"
"""The directory inside with the files of the application, read-only."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount of a directory or file of the host.

    Attributes:
        source: absolute path on the host, without symbolic links.
        target: absolute path inside, normalised.
        read_only: whether writing from inside is denied.
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A published port: a TCP port on the host's 127.0.0.1, redirected to one inside."""

    host: int
    inside: int


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox, as the user asked for it. `request.resolve.make` has validated it, so drivers may trust it.

    Attributes:
        name: matches NAME_PATTERN; unique among the sandboxes of a host.
        workload: the name of the workload, shown in listings.
        isolation: one of the levels of `sandbox.isolation.LEVELS`.
        argv: the full command that runs inside, under the init, as SANDBOX_UID.
        env: environment variables, sorted by name; besides these the command has only PATH, HOME and LANG.
        port: TCP port that the workload listens on; None if it is not known, and no reply is waited for.
        ready_path: HTTP path that is answered with 200 once the workload serves.
        cpus: CPU time per second of wall time, > 0.
        memory: bytes, without swap.
        pids_limit: processes and threads together.
        cpuset: CPU list in the format of cpuset(7), such as "0" or "0-1"; None for all.
        disk: size of /tmp in bytes; besides it only /dev/shm and mounts are writable.
        mounts: bind mounts of the host's files.
        publish: published ports.
        app: whether the record's directory has files of an application, to be mounted read-only at APP_DIR.
        workdir: absolute path inside that the command starts in.
        warm: whether it is forked from a prepared interpreter instead of executed.
    """

    name: str
    workload: str
    isolation: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    port: int | None = DEFAULT_PORT
    ready_path: str = "/healthz"
    cpus: float = DEFAULT_CPUS
    memory: int = DEFAULT_MEMORY
    pids_limit: int = DEFAULT_PIDS
    cpuset: str | None = None
    disk: int = DEFAULT_DISK
    mounts: tuple[Mount, ...] = ()
    publish: tuple[Publish, ...] = ()
    app: bool = False
    workdir: str = "/"
    warm: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON types, as `sandbox inspect` shows it."""
        raw = asdict(self)
        raw["argv"] = list(self.argv)
        raw["env"] = dict(self.env)
        raw["mounts"] = [asdict(mount) for mount in self.mounts]
        raw["publish"] = [asdict(port) for port in self.publish]
        return raw


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits as read back from the kernel or engine that enforces them; None for one that cannot be observed.

    Attributes:
        cpus: CPU time per second of wall time.
        memory: bytes, swap included.
        pids: processes and threads.
        disk: size of /tmp in bytes.
        source: where they were read, such as "cgroup v1" or "live domain + guest cgroup v2".
    """

    cpus: float | None
    memory: int | None
    pids: int | None
    source: str = field(default="", compare=False)
    disk: int | None = None
