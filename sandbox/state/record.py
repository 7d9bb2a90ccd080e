"""The record of one sandbox, and its JSON form on disk; the dataclass is the schema."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sandbox.errors import NewerRecordError, StoreError
from sandbox.phases import Status, Timeline
from sandbox.spec import NAME_PATTERN, SandboxSpec
from sandbox.state import codec, paths
from sandbox.state.processid import ProcessId, boot_id

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

VERSION = 3
"""Records of older versions are refused."""
LOG_FILE = "log"
APP_FOLDER = "app"
ID_PATTERN = re.compile(r"[0-9a-f]{12}")
MAX_PID = 4_194_304
"""PID_MAX_LIMIT of 64-bit kernels, proc(5)."""
_ADDRESS = re.compile(r"198\.18\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])")
_FIRST_ADDRESS_BYTE = 2
"""Sandboxes' addresses begin at 198.18.2.0; lower ones belong to the host, the load generator and Docker."""
_PORTS = range(1, 65536)
_YEAR_10000 = 253_402_300_800.0
"""Seconds since the epoch; datetime cannot represent a later time."""
H = TypeVar("H")


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a workload.

    Attributes:
        code: the exit code in a shell's terms (128+n for a signal); None if it is not known.
        time: in seconds since the epoch.
        oom_killed: whether the kernel killed one of its processes at the memory limit; None if it is not known.
        reason: the reason in a few words; None if there is no more to say than the code.

    Raises:
        ValueError: the code or the time is out of range.
    """

    code: int | None
    time: float
    oom_killed: bool | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.code not in (None, *range(256)) or not 0 <= self.time < _YEAR_10000:
            raise ValueError(f"exit code {self.code} at {self.time}")


@dataclass(slots=True)
class Record:
    """The stored description of one sandbox.

    Attributes:
        id: 12 hex digits; the name of every resource contains it.
        spec: the requested settings.
        address: its address on the lab network, in dotted-quad notation.
        status: the last step that a command completed; whether it runs now is not stored.
        created: the time of its creation, in seconds since the epoch.
        boot_id: the host's boot in which it was created.
        owner: the command that it is tied to; None if it runs in the background. If its owner has died, `prune`
            removes the sandbox.
        process: the init (or QEMU) on this host, once known.
        timeline: the phases of its start.
        exit: how its workload ended, once that is recorded.
        paused: whether a pause was requested; the level knows whether it is still paused.
        warm: the key of the warm starts that may use it (see `lifecycle.warm`); None otherwise.
        remove_at_end: whether its keeper removes it when the workload ends by itself.
        accelerator: "kvm" or "tcg" for a virtual machine.
        handle: the data by which its level finds it again: see `read_handle` and `keep_handle`.
    """

    id: str
    spec: SandboxSpec
    address: str
    status: Status = Status.CREATING
    created: float = field(default_factory=time.time)
    boot_id: str = field(default_factory=boot_id)
    owner: ProcessId | None = None
    process: ProcessId | None = None
    timeline: Timeline = field(default_factory=Timeline)
    exit: Exit | None = None
    paused: bool = False
    warm: str | None = None
    remove_at_end: bool = False
    accelerator: str | None = None
    handle: dict[str, str | None] | None = None

    @property
    def name(self) -> str:
        """The sandbox's name."""
        return self.spec.name

    @property
    def url(self) -> str | None:
        """The URL at which the host and the load generator reach it; None without a known port."""
        return None if self.spec.port is None else f"http://{self.address}:{self.spec.port}/"

    @property
    def exit_code(self) -> int | None:
        """The exit code of its workload, if it is recorded and known."""
        return None if self.exit is None else self.exit.code

    @property
    def directory(self) -> Path:
        """Its directory, with the record, the log, and the driver's files."""
        return paths.sandboxes_dir() / self.id

    @property
    def log_path(self) -> Path:
        """The log of the workload's output."""
        return self.directory / LOG_FILE

    @property
    def app_path(self) -> Path:
        """The directory of the application's files, if `spec.app` is true."""
        return self.directory / APP_FOLDER

    @property
    def mac(self) -> str:
        """Its hardware address, a locally administered one that is derived from the address."""
        return "02:5b:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))

    def keep_handle(self, handle: DataclassInstance) -> None:
        """Store the data by which the level finds the sandbox again: a dataclass of the level, with text fields."""
        self.handle = asdict(handle)

    def read_handle(self, kind: type[H]) -> H | None:
        """Return what `keep_handle` stored; None if the sandbox is incomplete and has no handle.

        Raises:
            StoreError: the handle is not of that type.
        """
        if self.handle is None:
            return None
        try:
            found: H = codec.decode(kind, self.handle, "handle")
        except ValueError as error:
            raise StoreError(f"the record of {self.name} is unreadable: {error}", "sandbox prune removes it") from None
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the record in JSON types."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Record:
        """Build a record from the result of `to_json`. Root acts on records, so they are validated as untrusted input.

        Raises:
            NewerRecordError: a newer version of sandbox wrote it.
            AttributeError, KeyError, TypeError, ValueError: it is not a valid record.
        """
        version = codec.decode(int, raw["version"], "version")
        if version > VERSION:
            raise NewerRecordError(f"the record's version is {version}, and this sandbox reads up to {VERSION}")
        if version < VERSION:
            raise ValueError(f"an older sandbox wrote it (version {version}; this one reads version {VERSION})")
        values = {key: value for key, value in raw.items() if key != "version"}
        record: Record = codec.decode(cls, values, "record")
        if not ID_PATTERN.fullmatch(record.id):
            raise ValueError(f"id {record.id!r}")
        _check_spec(record.spec)
        address = _ADDRESS.fullmatch(record.address)
        if address is None or int(address[1]) < _FIRST_ADDRESS_BYTE:
            raise ValueError(f"address {record.address!r}")
        if not 0 <= record.created < _YEAR_10000:
            raise ValueError(f"created {record.created}")
        for process in (record.owner, record.process):
            if process is not None and not (1 < process.pid <= MAX_PID and process.start_time >= 0):
                raise ValueError(f"process {process.pid}")
        return record


def _check_spec(spec: SandboxSpec) -> None:
    if not NAME_PATTERN.fullmatch(spec.name):
        raise ValueError(f"name {spec.name!r}")
    if not (spec.cpus > 0 and math.isfinite(spec.cpus) and spec.memory > 0 and spec.pids_limit > 0):
        raise ValueError("a limit is not positive")
    ports = [spec.port] if spec.port is not None else []
    for port in ports + [number for one in spec.publish for number in (one.host, one.inside)]:
        if port not in _PORTS:
            raise ValueError(f"port {port}")
