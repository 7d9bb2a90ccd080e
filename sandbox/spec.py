"""What a user asks for: one frozen spec, the same at every level, honoured or refused. `parse` makes its values."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MIB = 1024 * 1024
MIN_MEMORY = 16 * MIB
"""Bytes. A Python server with its workers needs about 12 MiB; below this nothing of ours starts."""
MIN_DISK = MIB
MIN_PIDS = 8
MAX_PIDS = 4_194_304
"""The kernel's own ceiling, PID_MAX_LIMIT on 64 bit (proc(5), pid_max)."""

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL, docker-stop(1)'s default."""
DEFAULT_CPUS = 1.0
DEFAULT_MEMORY = 256 * MIB
DEFAULT_PIDS = 128
DEFAULT_DISK = 64 * MIB
DEFAULT_PORT = 8080

LISTEN = "@listen@"
"""Stands in an argv for the address to listen on, until the sandbox's place on the network is known."""

SANDBOX_UID = 10001
"""The user that the workload runs as, inside, at every level; the root filesystem's passwd has it as `sandbox`."""

APP_DIR = "/app"
"""Where a sandbox has the files of the application that it runs, read-only."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host, to be seen inside.

    Attributes:
        source: absolute path on the host, without symbolic links in it.
        target: absolute path inside, normalised.
        read_only: whether it can be written from inside.
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A TCP port of the host's 127.0.0.1 that leads to one inside."""

    host: int
    inside: int


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox, as asked for. Validated by `request.make`; drivers may trust it.

    Attributes:
        name: matches NAME_PATTERN; unique among the sandboxes of a host.
        workload: the name of the workload, shown in listings.
        isolation: one of the levels of `sandbox.isolation.LEVELS`.
        argv: the full command that runs inside, under the init, as SANDBOX_UID.
        env: environment entries, sorted by name; the command's environment is these and PATH, HOME, LANG only.
        port: TCP port that the workload listens on; None where nothing is known of one, and no reply is awaited.
        ready_path: HTTP path that answers 200 once the workload serves.
        cpus: CPU time per second of wall time, > 0.
        memory: bytes; swap is not added to it.
        pids_limit: processes and threads together.
        cpuset: CPU list as of cpuset(7), such as "0" or "0-1"; None for all.
        disk: bytes that it can write below /tmp, which is all it can write to beside /dev/shm and mounts.
        mounts: what it sees of the host's files.
        publish: ports on the host's 127.0.0.1 that lead inside.
        app: whether the record's directory has files of an application, to be seen read-only at APP_DIR.
        workdir: absolute path inside that the command starts in.
        warm: whether it is forked from a prepared interpreter in place of an exec.
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
        """The spec as JSON types, as `sandbox inspect` shows it."""
        raw = asdict(self)
        raw["argv"] = list(self.argv)
        raw["env"] = dict(self.env)
        raw["mounts"] = [asdict(mount) for mount in self.mounts]
        raw["publish"] = [asdict(port) for port in self.publish]
        return raw


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits as read back from whatever enforces them; None where they cannot be observed.

    Attributes:
        cpus: CPU time per second of wall time.
        memory: bytes, swap included.
        pids: processes and threads.
        disk: bytes that can be written below /tmp.
        source: what was read, such as "cgroup v1" or "live domain + guest cgroup v2".
    """

    cpus: float | None
    memory: int | None
    pids: int | None
    source: str = field(default="", compare=False)
    disk: int | None = None
