"""Test the inspection of a container from dockerd's description; the test's own process stands in for its init."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox.isolation.docker import inspection as docker_inspection
from sandbox.isolation.docker import seccomp
from sandbox.isolation.in_force import Ended, Inspection
from sandbox.isolation.inspection import host_view, inside
from sandbox.spec import Limits, SandboxSpec
from sandbox.state.record import Record

RECORD = Record("0123456789ab", SandboxSpec("web", "sleep", "container", ("sleep",)), "198.18.2.1")
STATE = {
    "Status": "running",
    "ExitCode": 0,
    "OOMKilled": False,
    "FinishedAt": "0001-01-01T00:00:00Z",
    "Error": "",
}
ENDED = STATE | {"Status": "exited", "ExitCode": 137, "FinishedAt": "2026-11-28T11:54:42.335678912Z"}


def look(state: dict[str, Any], group: Any = None, pid: int | None = None, **config: Any) -> Inspection:
    found = {
        "State": state,
        "Config": {"User": "10001:10001"},
        "HostConfig": {"Memory": 2**20, **config},
        "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "81/tcp": None}},
        "Mounts": [
            {"Type": "bind", "Source": "/a", "Destination": "/b", "RW": False, "Propagation": "private"},
            {"Type": "tmpfs", "Destination": "/tmp", "RW": True},
        ],
    }
    return docker_inspection.inspect(RECORD, found, host_view(pid), pid, group, Limits(1.0, 2**20, 9, "docker inspect"))


@pytest.fixture(autouse=True)
def _no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))


def test_one_that_runs() -> None:
    found = look(STATE, pid=os.getpid(), MemorySwap=3 * 2**20, SecurityOpt=["no-new-privileges", "seccomp=unconfined"])
    assert (found.ended, found.oom_killed) == (None, False)
    assert found.user.uid == os.geteuid()
    assert found.engine is not None
    assert found.engine.swap == 2 * 2**20
    assert (found.engine.security_options, found.engine.seccomp_profile) == (["no-new-privileges"], "unconfined")
    assert [(one.type, one.source, one.target, one.read_only) for one in found.engine.mounts] == [
        ("bind", "/a", "/b", True)
    ]
    assert found.engine.published_ports == ["127.0.0.1:8080->80/tcp"]
    assert found.domain is None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ENDED, "killed by SIGKILL"),
        (ENDED | {"OOMKilled": True}, "out of memory"),
        (ENDED | {"ExitCode": 0}, "exited"),
        (ENDED | {"ExitCode": 127, "Error": "no such file"}, "no such file"),
    ],
)
def test_one_that_has_ended(state: dict[str, Any], reason: str) -> None:
    found = look(state)
    assert found.ended == Ended("2026-11-28T11:54:42.335+00:00", state["ExitCode"], reason)
    assert found.oom_killed is state["OOMKilled"]
    assert found.user.uid is None


def test_one_that_has_not_started() -> None:
    assert look(STATE | {"Status": "created"}).ended is None


def test_a_kill_shows_before_dockerd_notes_it() -> None:
    group = SimpleNamespace(events=lambda: {"oom_kill": 1}, swap_limit=int, oom_group=bool, cpuset=lambda: "0")
    assert look(STATE, group).oom_killed is True


def test_a_profile_of_anothers_has_a_digest() -> None:
    assert docker_inspection._profile(seccomp.profile()) == "sandbox"
    assert docker_inspection._profile("{}").startswith("sha256:")


def test_what_cannot_be_seen_is_none() -> None:
    found = docker_inspection.inspect(
        RECORD,
        {"State": STATE, "Config": {}, "HostConfig": {}, "NetworkSettings": {}},
        inside(None),
        None,
        None,
        Limits(None, None, None, "docker inspect"),
    )
    assert found.user.no_new_privileges is None
    assert found.capabilities.effective is None
    assert found.mounts is None
