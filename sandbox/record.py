"""What is known of one sandbox, and its form on disk."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox import paths
from sandbox.phases import Status, Timeline
from sandbox.processid import ProcessId, boot_id
from sandbox.spec import SandboxSpec

VERSION = 1
LOG_FILE = "log"
ID_PATTERN = re.compile(r"[0-9a-f]{12}")


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
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is not one of ours.
        """
        if raw["version"] != VERSION:
            raise ValueError(f"record version {raw['version']!r}, this sandbox knows {VERSION}")
        if not ID_PATTERN.fullmatch(raw["id"]):
            raise ValueError(f"id {raw['id']!r}")
        return cls(
            id=raw["id"],
            spec=SandboxSpec.from_json(raw["spec"]),
            address=str(raw["address"]),
            status=Status(raw["status"]),
            created=float(raw["created"]),
            boot_id=str(raw["boot_id"]),
            owner=_process_from(raw["owner"]),
            process=_process_from(raw["process"]),
            timeline=Timeline.from_json(raw["timeline"]),
            data=dict(raw["data"]),
        )


def _process_json(process: ProcessId | None) -> dict[str, Any] | None:
    if process is None:
        return None
    return {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id}


def _process_from(raw: Mapping[str, Any] | None) -> ProcessId | None:
    if raw is None:
        return None
    return ProcessId(int(raw["pid"]), int(raw["start_time"]), str(raw["boot_id"]))
