"""The document that `sandbox doctor` prints: all findings on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox.host.checks import CHECKS, COMMON, EXTRAS, OPTIONAL, Finding, Survey
from sandbox.host.distribution import distribution, systemd
from sandbox.kernel import cgroup
from sandbox.state.processid import boot_id

VERSION = 1


@dataclass(frozen=True, slots=True)
class Level:
    """An isolation level or an extra, with what it lacks."""

    name: str
    missing: tuple[Finding, ...]

    @property
    def available(self) -> bool:
        """True if nothing that it requires is missing."""
        return not self.missing

    def lacks(self) -> list[dict[str, str]]:
        """Return the missing capabilities as JSON types."""
        return [{"what": finding.name, "reason": finding.detail, "remedy": finding.remedy} for finding in self.missing]


@dataclass(frozen=True, slots=True)
class Note:
    """An optional capability that is missing, and what is lost without it."""

    finding: Finding
    without: str


@dataclass(frozen=True, slots=True)
class Host:
    """The host that the findings are about.

    Attributes:
        distribution: name of the distribution, for people.
        kernel: release of the kernel, as uname -r.
        machine: architecture, as uname -m.
        boot_id: id of this boot.
        cgroups: "v1", "v2" or "hybrid".
        init: "systemd" or "other".
    """

    distribution: str
    kernel: str
    machine: str
    boot_id: str
    cgroups: str
    init: str


@dataclass(frozen=True, slots=True)
class Report:
    """The whole document.

    Attributes:
        extras: optional features that are not levels; `complete` does not depend on them.
    """

    host: Host
    levels: tuple[Level, ...]
    extras: tuple[Level, ...]
    notes: tuple[Note, ...]
    findings: tuple[Finding, ...]

    @property
    def complete(self) -> bool:
        """True if every level is available."""
        return all(level.available for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "version": VERSION,
            "host": asdict(self.host),
            "levels": [
                {"level": level.name, "available": level.available, "missing": level.lacks()} for level in self.levels
            ],
            "extras": [
                {"extra": extra.name, "available": extra.available, "missing": extra.lacks()} for extra in self.extras
            ],
            "notes": [
                {
                    "what": note.finding.name,
                    "reason": note.finding.detail,
                    "remedy": note.finding.remedy,
                    "without": note.without,
                }
                for note in self.notes
            ],
            "checks": [
                {"what": finding.name, "ok": finding.ok, "detail": finding.detail, "remedy": finding.remedy}
                for finding in self.findings
            ],
        }


def look(requirements: Mapping[str, Iterable[str]]) -> Report:
    """Check this host. Never raises if it lacks something.

    Args:
        requirements: the capabilities that each level needs beside those that every level needs.
    """
    survey = Survey()
    wanted = {name: (*COMMON, *requires) for name, requires in requirements.items()}
    levels, extras = (
        tuple(Level(name, tuple(finding for finding in survey.level(needs) if not finding.ok)) for name, needs in one)
        for one in (wanted.items(), EXTRAS.items())
    )
    if not survey.look("root").ok:
        return Report(_host(), levels, extras, (), (survey.look("root"),))
    notes = tuple(
        Note(finding, optional.without) for optional in OPTIONAL if not (finding := survey.look(optional.name)).ok
    )
    return Report(_host(), levels, extras, notes, tuple(survey.look(name) for name in CHECKS))


def _host() -> Host:
    name = os.uname()
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    return Host(
        distribution=distribution().name,
        kernel=name.release,
        machine=name.machine,
        boot_id=boot_id(),
        cgroups=cgroup.read_hierarchy(mounts).mode,
        init="systemd" if systemd() else "other",
    )
