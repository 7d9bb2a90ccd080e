"""The one form of what is in force in a sandbox. docs/inspect.schema.json is the same as a JSON schema.

Every field is there at every level, with the same type, unit and words; None is what cannot be observed there, or not
now. What an engine alone knows has a section of its own: `Engine`, `Domain`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

UNLIMITED = -1
"""In place of a resource limit that is not set."""


class SeccompMode(StrEnum):
    """proc_pid_status(5), Seccomp."""

    DISABLED = "disabled"
    STRICT = "strict"
    FILTER = "filter"


class Owner(StrEnum):
    """Whose a namespace is: made for the sandbox, this host's own, or the first one of the sandbox's own kernel."""

    SANDBOX = "sandbox"
    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel that serves the workload's system calls, by its own account.

    Attributes:
        shared: whether it is this host's.
        release: as of uname(2).
        command_line: what it was started with.
        processors: CPUs online.
        memory, swap: bytes that it has.
    """

    shared: bool
    release: str | None
    command_line: str | None
    processors: int | None
    memory: int | None
    swap: int | None


@dataclass(frozen=True, slots=True)
class User:
    """Who a process is: credentials(7), user_namespaces(7).

    Attributes:
        uid, gid, groups: effective on the side that the section is about: inside, or for `Process` on this host.
        no_new_privileges: whether no program can gain privileges by its set-user-id bit or file capabilities.
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
    """Whether system calls are filtered, and by how many filters (seccomp(2))."""

    mode: SeccompMode | None
    filters: int | None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of the process: the number that its kernel gives it, and whose it is."""

    id: int | None
    owner: Owner | None


@dataclass(frozen=True, slots=True)
class Namespaces:
    """By the kinds of namespaces(7). `time` is the clock of the init's children, which the workload is."""

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
    """Limits, as read back from what enforces them.

    Attributes:
        cpus: CPU time per second of wall time.
        memory, disk, swap: bytes; `disk` is what can be written below /tmp, `swap` what can be used beside the memory.
        pids: processes and threads.
        oom_group: whether all of it is killed where the kernel would kill one process for want of memory.
        cpuset: CPUs, as cpuset(7) lists them.
        file_size: bytes of the largest file that can be written (RLIMIT_FSIZE); UNLIMITED without a limit.
        source: what was read.
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
    """The network as the workload has it.

    Attributes:
        own: whether it has a network stack of its own.
        address: dotted quad: the one that it was given, where it has that, else the first.
        link, mac: the interface with this address, and its hardware address; None on the host's stack.
        routes: as ip-route(8) prints them.
        interfaces: by name.
    """

    own: bool | None
    address: str | None
    link: str | None
    mac: str | None
    routes: list[str] | None
    interfaces: dict[str, Link] | None


@dataclass(frozen=True, slots=True)
class Process:
    """The process of this host that the sandbox runs in, by this host's kernel: its init, gVisor's kernel, or QEMU.

    Attributes:
        pid: on this host.
        program: its first argument.
        descriptors: what it has open: number and kind.
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
    """When and why a sandbox ended.

    Attributes:
        time: ISO 8601, UTC.
        code: as a shell would say it: 128+n for a signal.
        reason: in a few words, such as "exited", "killed by SIGTERM" or "out of memory".
    """

    time: str | None
    code: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class EngineMount:
    """A mount as dockerd has it."""

    type: str
    source: str | None
    target: str
    read_only: bool
    propagation: str | None


@dataclass(frozen=True, slots=True)
class Engine:
    """What dockerd holds a container to: its settings as it has them, in its own words."""

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
    """The live domain, as libvirt has it, and the options of QEMU's own sandbox.

    Attributes:
        quota: CPU time per second of wall time for the whole of QEMU.
        memory: bytes.
        devices: kind and model of every device.
        security_label: user and group of QEMU.
        sandbox_option: QEMU's argument -sandbox.
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
    """What is in force, read from what enforces it: the kernel, dockerd, the live domain; never copied from the spec.

    The sections up to `network` are about the workload, as its own kernel has it. `process` is about what carries it
    on this host; None when it does not run. `oom_killed` says whether the kernel killed a process of it for want of
    memory, and `ended` is None as long as it runs. `engine` and `domain` are for the levels that have one.
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
        """All of it in JSON types."""
        return asdict(self)
