"""What was asked for beside what is in force: one table of the settings that can be compared. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandbox.isolation.in_force import Inspection, MountPoint
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


def compare(record: Record, effective: Inspection | None) -> list[Fact]:
    """The settings of a sandbox, each as asked for and as found.

    Args:
        record: what was asked for.
        effective: as of `Sandbox.inspection`; None where nothing could be read.
    """
    spec = record.spec
    limits = effective.limits if effective else None
    facts = [
        _fact("cpus", spec.cpus, limits and limits.cpus, CPU_SLACK * spec.cpus),
        _fact("memory", spec.memory, limits and limits.memory, PAGE),
        _fact("pids_limit", spec.pids_limit, limits and limits.pids, 0),
        _fact("disk", spec.disk, limits and limits.disk, PAGE),
        _fact("address", record.address, effective and effective.network.address),
        _fact("uid", SANDBOX_UID, effective and effective.user.uid),
    ]
    if spec.cpuset is not None:
        facts.append(_fact("cpuset", spec.cpuset, limits and limits.cpuset))
    return facts + list(_mounts(record, effective.mounts if effective else None))


def _fact(setting: str, requested: Any, effective: Any, slack: float | None = None) -> Fact:
    differs: bool | None
    if effective is None:
        differs = None
    elif slack is None:
        differs = requested != effective
    else:
        differs = not isinstance(effective, int | float) or abs(effective - requested) > slack
    return Fact(setting, requested, effective, differs)


def _mounts(record: Record, mounts: list[MountPoint] | None) -> Iterator[Fact]:
    """The root filesystem and each bind mount that was asked for: read-only, writable or missing."""
    there = {mount.target: "ro" if mount.read_only else "rw" for mount in mounts or ()}
    yield _fact("mount /", "ro", there.get("/"))
    for asked in record.spec.mounts:
        wanted = "ro" if asked.read_only else "rw"
        yield _fact(f"mount {asked.target}", wanted, there.get(asked.target, "missing") if there else None)
