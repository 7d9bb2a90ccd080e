"""Test the inspection of a local sandbox; the test's own process stands in for one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sandbox.isolation.base import State
from sandbox.isolation.in_force import Ended, Inspection
from sandbox.isolation.local.inspection import inspect
from sandbox.kernel.cgroup import Group, Hierarchy
from sandbox.spec import Limits, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    record = Record("0123456789ab", SandboxSpec("web", "sleep", "process", ("sleep",)), "198.18.2.1")
    record.process = ProcessId.of(os.getpid())
    where = Hierarchy("v2", {}, tmp_path, frozenset({"cpu", "memory", "pids", "cpuset"}))
    folder = tmp_path / "sandbox" / record.id
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("max 3\noom_kill 0\n")
    (folder / "memory.swap.max").write_text("0\n")
    (folder / "memory.oom.group").write_text("1\n")
    (folder / "cpuset.cpus.effective").write_text("0-1\n")

    def act(state: State, *, kills: int = 0) -> Inspection:
        (folder / "memory.events").write_text(f"max 3\noom_kill {kills}\n")
        return inspect(record, Group(record.id, where=where), state, Limits(1.0, 2**20, 9, "here", 2**20))

    return act


def test_one_that_runs(look: Any) -> None:
    found = look(State(running=True, pid=os.getpid()))
    assert found.ended is None
    assert found.oom_killed is False
    assert found.network.own is False
    assert (found.limits.swap, found.limits.oom_group, found.limits.cpuset) == (0, True, "0-1")
    assert (found.limits.cpus, found.limits.pids, found.limits.source) == (1.0, 9, "here")
    assert (found.engine, found.domain) == (None, None)
    assert found.process.pid == os.getpid()


def test_one_that_has_ended_has_what_its_control_group_says(look: Any) -> None:
    found = look(State(running=False, exit_code=137), kills=1)
    assert found.oom_killed is True
    assert found.ended == Ended(None, 137, "out of memory")
    assert found.process is None
    assert found.user.uid is None
    assert found.mounts is None
    assert found.limits.memory == 2**20
    assert found.network.address is None, "it was given one, and has none now"
