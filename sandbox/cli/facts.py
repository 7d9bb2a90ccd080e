"""Compare the requested settings of a sandbox with those in force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandbox.isolation.in_force import Inspection, MountPoint
from sandbox.spec import SANDBOX_UID
from sandbox.state.record import Record

CPU_SLACK = 0.001
"""The relative difference that counts as equal: a quota is rounded to a microsecond per period."""
PAGE = 4096
"""The difference in bytes that counts as equal: memory and tmpfs are counted in pages."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A setting, with its requested value and the one in force.

    Attributes:
        setting: its name.
        requested: the requested value, in JSON types.
        effective: the value in force; None if it cannot be observed.
        differs: whether the two differ; None if the latter cannot be observed.
    """

    setting: str
    requested: Any
    effective: Any
    differs: bool | None


def compare(record: Record, effective: Inspection | None) -> list[Fact]:
    """Return the settings of a sandbox, each with its requested value and the one in force.

    Args:
        record: of the sandbox, with the requested settings.
        effective: the result of `Sandbox.inspection`; None if it failed.
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
    """Yield the root filesystem and each requested bind mount: read-only, writable or missing."""
    there = {mount.target: "ro" if mount.read_only else "rw" for mount in mounts or ()}
    yield _fact("mount /", "ro", there.get("/"))
    for asked in record.spec.mounts:
        wanted = "ro" if asked.read_only else "rw"
        yield _fact(f"mount {asked.target}", wanted, there.get(asked.target, "missing") if there else None)
