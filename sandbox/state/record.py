"""What is known of one sandbox, and its form on disk."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.errors import NewerRecordError
from sandbox.phases import Status, Timeline
from sandbox.spec import NAME_PATTERN, SandboxSpec
from sandbox.state import codec, paths
from sandbox.state.processid import ProcessId, boot_id

VERSION = 2
"""1 had no mounts, published ports, disk limit nor application; its records are still read."""
LOG_FILE = "log"
APP_FOLDER = "app"
ID_PATTERN = re.compile(r"[0-9a-f]{12}")
MAX_PID = 4_194_304
"""PID_MAX_LIMIT of 64-bit kernels, proc(5)."""
_ADDRESS = re.compile(r"198\.18\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])")
_FIRST_ADDRESS_BYTE = 2
"""Sandboxes' addresses begin at 198.18.2.0; below are the host's, the generator's and Docker's own."""
_PORTS = range(1, 65536)
_DATA = {
    "accelerator": str,
    "docker": dict,
    "domain": str,
    "exit_code": int,
    "host_key": str,
    "nonce": str,
}
"""Types of what drivers and manager put into `data` under these keys; other keys are their driver's affair."""
_DOCKER = {"socket": str, "container": str}


@dataclass(slots=True)
class Record:
    """What is known of one sandbox.

    Attributes:
        id: 12 hex digits; every resource carries it.
        spec: as asked for.
        address: its address on the lab network, dotted quad.
        status: the last step that a command completed; whether it runs now is derived.
        created: seconds since the epoch, for people.
        boot_id: of the host's boot in which it was made.
        owner: the command that follows it in the foreground; None when detached. An owner that died makes the
            sandbox debris.
        process: the init (or QEMU) on this host, once known.
        timeline: phases of its start.
        data: the driver's own, JSON types only.
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
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The sandbox's name."""
        return self.spec.name

    @property
    def directory(self) -> Path:
        """Its directory: the record, the log, and what the driver keeps."""
        return paths.sandboxes_dir() / self.id

    @property
    def log_path(self) -> Path:
        """Where the workload's output goes, at levels whose engine keeps none."""
        return self.directory / LOG_FILE

    @property
    def app_path(self) -> Path:
        """The application's files, where `spec.app` says that there are any."""
        return self.directory / APP_FOLDER

    @property
    def mac(self) -> str:
        """Its hardware address: locally administered, made of the address, so that it can be known in advance."""
        return "02:5b:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return {
            "version": VERSION,
            "id": self.id,
            "spec": self.spec.to_json(),
            "address": self.address,
            "status": self.status.value,
            "created": self.created,
            "boot_id": self.boot_id,
            "owner": _process_json(self.owner),
            "process": _process_json(self.process),
            "timeline": self.timeline.to_json(),
            "data": self.data,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Record:
        """Inverse of `to_json`. Trusts nothing: what a record says is acted upon by root.

        Raises:
            NewerRecordError: a newer version of sandbox wrote it.
            AttributeError, KeyError, TypeError, ValueError: it is not one of ours.
        """
        version = codec.decode(int, raw["version"], "version")
        if version > VERSION:
            raise NewerRecordError(f"its version is {version}, and this sandbox reads up to {VERSION}")
        if version < 1:
            raise ValueError(f"version {version}")
        if not ID_PATTERN.fullmatch(raw["id"]):
            raise ValueError(f"id {raw['id']!r}")
        codec.decode(list[str], raw["spec"]["argv"], "spec.argv")
        record = cls(
            id=raw["id"],
            spec=SandboxSpec.from_json(raw["spec"]),
            address=codec.decode(str, raw["address"], "address"),
            status=Status(raw["status"]),
            created=codec.decode(float, raw["created"], "created"),
            boot_id=codec.decode(str, raw["boot_id"], "boot_id"),
            owner=_process_from(raw["owner"], "owner"),
            process=_process_from(raw["process"], "process"),
            timeline=Timeline.from_json(raw["timeline"]),
            data=codec.decode(dict, raw["data"], "data"),
        )
        _check_spec(record.spec)
        address = _ADDRESS.fullmatch(record.address)
        if address is None or int(address[1]) < _FIRST_ADDRESS_BYTE:
            raise ValueError(f"address {record.address!r}")
        if not 0 <= record.created < _YEAR_10000:
            raise ValueError(f"created {record.created}")
        _check_data(record.data, _DATA, "data")
        _check_data(record.data.get("docker") or {}, _DOCKER, "data.docker")
        return record


_YEAR_10000 = 253_402_300_800.0
"""Seconds since the epoch; what is later has no date that datetime could print."""


def _check_spec(spec: SandboxSpec) -> None:
    codec.conform(SandboxSpec, spec, "spec")
    if not NAME_PATTERN.fullmatch(spec.name):
        raise ValueError(f"name {spec.name!r}")
    if not (spec.cpus > 0 and math.isfinite(spec.cpus) and spec.memory > 0 and spec.pids_limit > 0):
        raise ValueError("a limit is not positive")
    ports = [spec.port] if spec.port is not None else []
    for port in ports + [number for one in spec.publish for number in (one.host, one.inside)]:
        if port not in _PORTS:
            raise ValueError(f"port {port}")


def _check_data(data: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for key, kind in kinds.items():
        codec.decode(kind | None, data.get(key), f"{where}.{key}")


def _process_json(process: ProcessId | None) -> dict[str, Any] | None:
    if process is None:
        return None
    return {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id}


def _process_from(raw: Mapping[str, Any] | None, where: str) -> ProcessId | None:
    if raw is None:
        return None
    process: ProcessId = codec.decode(ProcessId, raw, where)
    if not (1 < process.pid <= MAX_PID and process.start_time >= 0):
        raise ValueError(f"{where} {process.pid}")
    return process
