"""The settings in force in a sandbox, as `sandbox inspect` shows them; docs/inspect.schema.json is their JSON schema.

Every level has the same fields, with the same types, units and words. A field is None if the level cannot observe it,
or cannot at the moment. Settings known only to an engine have a section of their own: `Engine`, `Domain`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

UNLIMITED = -1
"""Stands for a resource limit that is not set."""


class SeccompMode(StrEnum):
    """A process's seccomp mode (proc_pid_status(5), Seccomp)."""

    DISABLED = "disabled"
    STRICT = "strict"
    FILTER = "filter"


class Owner(StrEnum):
    """The owner of a namespace: the sandbox, this host, or the guest if it is the initial one of the guest's kernel."""

    SANDBOX = "sandbox"
    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that serves the workload's system calls, as it describes itself.

    Attributes:
        shared: whether it is this host's kernel.
        release: of uname(2).
        command_line: the parameters that it was booted with.
        processors: the number of online CPUs.
        memory, swap: in bytes.
    """

    shared: bool
    release: str | None
    command_line: str | None
    processors: int | None
    memory: int | None
    swap: int | None


@dataclass(frozen=True, slots=True)
class User:
    """The user and groups of a process: credentials(7), user_namespaces(7).

    Attributes:
        uid, gid, groups: the effective ones: inside, or on this host for `Process`.
        no_new_privileges: whether set-user-ID bits and file capabilities are ignored (PR_SET_NO_NEW_PRIVS).
        uid_map, gid_map: rows of (first inside, first outside, count).
        setgroups: "allow" or "deny".
    """

    uid: int | None
    gid: int | None
    groups: list[int] | None
    no_new_privileges: bool | None
    uid_map: list[list[int]] | None
    gid_map: list[list[int]] | None
    setgroups: str | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The five sets of a process, by name (capabilities(7))."""

    inheritable: list[str] | None
    permitted: list[str] | None
    effective: list[str] | None
    bounding: list[str] | None
    ambient: list[str] | None


@dataclass(frozen=True, slots=True)
class Seccomp:
    """The seccomp mode of a process and the number of its filters (seccomp(2))."""

    mode: SeccompMode | None
    filters: int | None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of a process: its inode number, and its owner."""

    id: int | None
    owner: Owner | None


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The namespaces of a process by kind (namespaces(7)). `time` is that of its children."""

    cgroup: Namespace
    ipc: Namespace
    mnt: Namespace
    net: Namespace
    pid: Namespace
    time: Namespace
    user: Namespace
    uts: Namespace


@dataclass(frozen=True, slots=True)
class Root:
    """The root filesystem: whether it can be written, and its type."""

    read_only: bool
    type: str


@dataclass(frozen=True, slots=True)
class MountPoint:
    """An entry of the workload's mount table; see `procfs.Mount`."""

    target: str
    type: str
    source: str
    root: str | None
    options: list[str]
    read_only: bool


@dataclass(frozen=True, slots=True)
class LimitsInForce:
    """The limits, as read back from what enforces them.

    Attributes:
        cpus: CPU time per second of wall time.
        memory, disk, swap: in bytes; `disk` is the size of /tmp, `swap` is in addition to `memory`.
        pids: processes and threads.
        oom_group: whether an OOM kill ends all processes of the sandbox.
        cpuset: CPUs, in the list format of cpuset(7).
        file_size: the largest file that can be written, in bytes (RLIMIT_FSIZE); UNLIMITED without a limit.
        source: the place that they were read from.
    """

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None
    disk: int | None = None
    swap: int | None = None
    oom_group: bool | None = None
    cpuset: str | None = None
    file_size: int | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Bytes received and sent over a network interface."""

    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Network:
    """The network as the workload sees it.

    Attributes:
        own: whether the sandbox has its own network stack.
        address: in dotted-quad notation: the assigned one if it is configured, else the first.
        link, mac: the interface with this address and its hardware address; None on the host's network stack.
        routes: in the format of ip-route(8).
        interfaces: the traffic of each interface, by name.
    """

    own: bool | None
    address: str | None
    link: str | None
    mac: str | None
    routes: list[str] | None
    interfaces: dict[str, Link] | None


@dataclass(frozen=True, slots=True)
class Process:
    """The process of this host that the sandbox runs in, as the host's kernel shows it: the init, gVisor, or QEMU.

    Attributes:
        pid: on this host.
        program: its first argument.
        descriptors: number and kind of each open descriptor.
    """

    pid: int
    program: str | None
    descriptors: list[str] | None
    user: User
    capabilities: Capabilities
    seccomp: Seccomp
    namespaces: Namespaces


@dataclass(frozen=True, slots=True)
class Ended:
    """The time of and the reason for a sandbox's end.

    Attributes:
        time: in ISO 8601 format, UTC.
        code: the exit code in a shell's terms: 128+n for a signal.
        reason: in a few words, such as "exited", "killed by SIGTERM" or "out of memory".
    """

    time: str | None
    code: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class EngineMount:
    """A mount as dockerd describes it."""

    type: str
    source: str | None
    target: str
    read_only: bool
    propagation: str | None


@dataclass(frozen=True, slots=True)
class Engine:
    """The settings of a container as dockerd describes them, in its own words."""

    runtime: str | None
    user: str | None
    privileged: bool | None
    capabilities_dropped: list[str] | None
    capabilities_added: list[str] | None
    security_options: list[str]
    seccomp_profile: str
    root_read_only: bool | None
    tmpfs: dict[str, str] | None
    swap: int | None
    mounts: list[EngineMount]
    devices: list[dict[str, str]]
    restart_policy: str | None
    log_driver: str | None
    log_options: dict[str, str] | None
    network: str | None
    network_mode: str | None
    name_servers: list[str] | None
    published_ports: list[str] | None
    namespaces: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a virtual machine."""

    file: str | None
    format: str | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Domain:
    """The live domain as libvirt describes it, and QEMU's option -sandbox.

    Attributes:
        quota: CPU time per second of wall time for the whole QEMU process.
        memory: in bytes.
        devices: kind and model of every device.
        security_label: user and group of QEMU.
        sandbox_option: the value of QEMU's option -sandbox.
    """

    accelerator: str | None
    machine: str | None
    processors: int | None
    cpuset: str | None
    quota: float | None
    memory: int | None
    devices: list[str]
    disks: list[Disk]
    security_label: str | None
    sandbox_option: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The settings in force, read from what enforces them (the kernel, dockerd, the domain), never from the spec.

    The sections up to `network` describe the workload as its own kernel shows it. `process` is the process of this host
    that the sandbox runs in; None if it does not run. `oom_killed` says whether the kernel killed one of its processes
    because memory ran out. `ended` is None while it runs. Only some levels have `engine` or `domain`.
    """

    kernel: Kernel
    user: User
    capabilities: Capabilities
    seccomp: Seccomp
    namespaces: Namespaces
    root: Root | None
    mounts: list[MountPoint] | None
    masked_paths: list[str] | None
    read_only_paths: list[str] | None
    limits: LimitsInForce
    network: Network
    process: Process | None
    oom_killed: bool | None
    ended: Ended | None
    engine: Engine | None = None
    domain: Domain | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything in JSON types."""
        return asdict(self)
