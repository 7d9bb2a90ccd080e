"""The isolation table on real engines: the known verdicts of each level, and the negative control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.isolation import LEVELS
from sandbox.measure.isolation import examine, limits, observed, verdicts
from sandbox.measure.isolation.limits import Group
from sandbox.results import IsolationCheck, Verdict
from tests.verbs import Manager

ISOLATED, SHARED, PARTIAL = Verdict.ISOLATED, Verdict.SHARED, Verdict.PARTIAL
HELD, NOT_HELD, UNKNOWN = Verdict.HELD, Verdict.NOT_HELD, Verdict.UNKNOWN

WALLED = {
    "processes": ISOLATED,
    "files": ISOLATED,
    "host services": ISOLATED,
    "sibling": ISOLATED,
    "no new privileges": ISOLATED,
    "devices": ISOLATED,
    "memory limit": HELD,
    "pids limit": HELD,
}
EXPECTED: dict[str, dict[str, Verdict]] = {
    "process": {
        **dict.fromkeys(verdicts.CHECKS, SHARED),
        "memory limit": HELD,
        "pids limit": HELD,
    },
    "namespace": WALLED
    | {
        "kernel": SHARED,
        "route out": ISOLATED,
        "root user": ISOLATED,
        "capabilities": ISOLATED,
        "seccomp": ISOLATED,
    },
    "container": WALLED
    | {
        "kernel": SHARED,
        "route out": ISOLATED,
        "root user": SHARED,
        "capabilities": ISOLATED,
        "seccomp": ISOLATED,
    },
    "gvisor": WALLED
    | {
        "kernel": ISOLATED,
        "route out": ISOLATED,
        "namespaces": ISOLATED,
        "seccomp": ISOLATED,
        "memory seen": ISOLATED,
    },
    "vm": WALLED
    | {
        "kernel": ISOLATED,
        "route out": ISOLATED,
        "root user": ISOLATED,
        "namespaces": ISOLATED,
        "seccomp": ISOLATED,
        "memory seen": ISOLATED,
    },
}
"""The expected verdicts, without those that depend on the engine's version or on the number of CPUs of this host."""


@pytest.mark.slow
@pytest.mark.parametrize("level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def test_the_table(level: str) -> None:
    said: list[str] = []
    rows = examine([level], "reactor", said.append)
    found = {row.check: row for row in rows}
    assert tuple(found) == verdicts.NAMES
    assert all(row.level == level and row.witness for row in rows)
    # On a host with one CPU none can be withheld, so the verdict is UNKNOWN.
    unsure = {check for check, row in found.items() if row.verdict is UNKNOWN} - {"CPUs seen"}
    assert not unsure, [_show(found[check]) for check in unsure]
    expected = {check: verdict for check, verdict in EXPECTED[level].items() if check != "CPUs seen"}
    wrong = [_show(found[check]) for check, verdict in expected.items() if found[check].verdict is not verdict]
    assert not wrong
    for row in rows:
        assert all(text.isprintable() and len(text) < 260 for text in row.evidence.values()), row
    assert any("exceeding the limits" in line for line in said)


@pytest.mark.level("namespace")
def test_a_limit_that_is_lifted_behind_the_back_is_not_held() -> None:
    """The negative control: the same attempt on the same sandbox, while the host's limit is removed."""
    manager = Manager()
    with manager.running(manager.make_spec("reactor", "namespace", memory="64m", pids_limit=24)) as running:
        pid = running.sandbox.state().pid
        assert pid is not None

        def lift(controller: str, names: tuple[str, ...], factor: int) -> None:
            group = Group.of(pid, controller)
            assert group is not None
            limit = group.limit()
            assert limit is not None
            for name in names:
                _raise(group.folder / name, limit * factor)

        pids = limits.push_pids(running.sandbox, before=lambda: lift("pids", ("pids.max",), 2))
        # v1 has limits of memory and of memory with swap, and the wider one is set first; v2 has one file.
        files = ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.max")
        memory = limits.push_memory(running.sandbox, before=lambda: lift("memory", files, 2))
    assert verdicts.pids_limit(pids).verdict is NOT_HELD
    assert verdicts.memory_limit(memory).verdict is NOT_HELD
    assert memory.got == memory.asked
    assert verdicts.memory_limit(replace(memory, limit=None)).verdict is UNKNOWN


@pytest.mark.level("process")
def test_a_level_that_cannot_start_says_why_in_every_row() -> None:
    said: list[str] = []
    rows = examine(["process"], "no-such-workload", said.append)
    assert {row.verdict for row in rows} == {UNKNOWN}
    assert len(rows) == len(verdicts.NAMES)
    assert all("no-such-workload" in row.evidence["host"] for row in rows)


def test_the_probe_fits_into_the_shortest_command_line() -> None:
    longest = observed.command("look", {"x" * 40: "y" * 900})
    assert sum(len(word) + 3 for word in longest) < 8900  # dropbear takes 9000 bytes


def _raise(path: Path, value: int) -> None:
    if path.exists():
        path.write_text(str(value))


def _show(row: IsolationCheck) -> str:
    return f"{row.check}: {row.verdict} {row.evidence}"
