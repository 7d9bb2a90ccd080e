"""What was asked for beside what is in force: one table of the settings that can be compared. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.spec import SANDBOX_UID
from sandbox.state.record import Record

CPU_SLACK = 0.001
"""Part of the value: a quota is rounded to a microsecond per period."""
PAGE = 4096
"""Bytes: memory and tmpfs are counted in pages."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A setting, as asked for and as found.

    Attributes:
        setting: its name.
        requested: what was asked for, JSON types.
        effective: what is in force; None where it cannot be observed.
        differs: whether it is in force otherwise than asked; None where it cannot be told.
    """

    setting: str
    requested: Any
    effective: Any
    differs: bool | None


def compare(record: Record, effective: Mapping[str, Any] | None) -> list[Fact]:
    """The settings of a sandbox, each as asked for and as found.

    Args:
        record: what was asked for.
        effective: as of `Sandbox.effective`; None where nothing could be read.
    """
    spec = record.spec
    found = effective or {}
    limits = _section(found, "limits")
    facts = [
        _fact("cpus", spec.cpus, limits.get("cpus"), CPU_SLACK * spec.cpus),
        _fact("memory", spec.memory, limits.get("memory"), PAGE),
        _fact("pids_limit", spec.pids_limit, limits.get("pids"), 0),
        _fact("disk", spec.disk, limits.get("disk"), PAGE),
        _fact("address", record.address, _section(found, "network").get("address")),
        _fact("uid", SANDBOX_UID, _section(found, "user").get("uid")),
    ]
    if spec.cpuset is not None:
        facts.append(_fact("cpuset", spec.cpuset, limits.get("cpuset")))
    return facts + list(_mounts(record, found.get("mounts")))


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = found.get(name)
    return section if isinstance(section, Mapping) else {}


def _fact(setting: str, requested: Any, effective: Any, slack: float | None = None) -> Fact:
    differs: bool | None
    if effective is None:
        differs = None
    elif slack is None:
        differs = requested != effective
    else:
        differs = not isinstance(effective, int | float) or abs(effective - requested) > slack
    return Fact(setting, requested, effective, differs)


def _mounts(record: Record, mounts: Any) -> Iterator[Fact]:
    """The root filesystem and each bind mount that was asked for: read-only, writable or missing."""
    there = {}
    for mount in mounts if isinstance(mounts, list) else ():
        if isinstance(mount, Mapping) and isinstance(options := mount.get("options"), list):
            there[mount.get("target")] = "ro" if "ro" in options else "rw"
    yield _fact("mount /", "ro", there.get("/"))
    for asked in record.spec.mounts:
        wanted = "ro" if asked.read_only else "rw"
        found = there.get(asked.target, "missing") if there else None
        yield _fact(f"mount {asked.target}", wanted, found)
