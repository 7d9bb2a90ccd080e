"""`inspect` at every level: one form, the same types and words, whatever the sandbox is doing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sandbox.isolation import driver
from sandbox.isolation.in_force import Inspection
from sandbox.spec import SANDBOX_UID
from sandbox.state import codec
from tests.integration.test_cli import sandbox

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/inspect.schema.json").read_text(encoding="utf-8"))
WITHOUT_MOUNTS = {"vm"}
OWNERS = {"process": "host", "namespace": "sandbox", "container": "sandbox", "gvisor": "guest", "vm": "guest"}
"""Whose the workload's network namespace is."""
BOMB = ("/usr/bin/python3", "-c", "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))")


@dataclass
class Seen:
    """What was shown of one sandbox while it ran, was paused, and had ended."""

    running: dict[str, Any]
    paused: dict[str, Any]
    ended: dict[str, Any]


def done(*argv: str) -> str:
    """What a command of `sandbox` prints that has to succeed."""
    found = sandbox(*argv, timeout=200)
    assert found.returncode == 0, found.stderr
    return found.stdout


def shown(name: str) -> dict[str, Any]:
    (found,) = json.loads(done("inspect", name))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def seen(level: str, tmp_path_factory: pytest.TempPathFactory, nothing_left_of_the_shared_one: None) -> Iterator[Seen]:
    """A server with mounts, where the level has them, and a published port."""
    outside = tmp_path_factory.mktemp("outside").resolve()
    name = f"inspect-{level}"
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    mounts = () if level in WITHOUT_MOUNTS else ("-v", f"{outside}:/data:ro", "-v", f"{outside}:/mnt")
    done("run", "reactor", "-d", "--isolation", level, "--name", name, "-m", "128m", "-p", f"{port}:8080", *mounts)
    try:
        running = shown(name)
        done("pause", name)
        paused = shown(name)
        done("unpause", name)
        done("kill", name)
        done("wait", name)
        yield Seen(running, paused, shown(name))
    finally:
        done("rm", "-f", name)


@pytest.mark.parametrize("moment", ["running", "paused", "ended"])
def test_the_form_is_the_same_at_every_level(seen: Seen, moment: str) -> None:
    found = getattr(seen, moment)
    jsonschema.validate([found], SCHEMA)
    assert found["effective_error"] is None
    effective = codec.decode(Inspection, found["effective"], "effective")
    assert json.loads(json.dumps(effective.to_json())) == found["effective"]


def test_the_same_fact_has_the_same_words(level: str, seen: Seen) -> None:
    found = seen.running["effective"]
    features = driver(level).features
    assert found["kernel"]["shared"] is features.shares_kernel
    assert found["network"]["own"] is features.own_network
    assert found["network"]["address"] == seen.running["resources"]["address"]
    assert found["network"]["mac"] == (seen.running["resources"]["mac"] if features.own_network else None)
    assert found["network"]["interfaces"]["lo"]["received"] >= 0
    assert (found["user"]["uid"], found["root"]["read_only"]) == (SANDBOX_UID, True)
    assert found["user"]["no_new_privileges"] in ((False,) if level == "process" else (True, None))
    assert found["capabilities"]["effective"] == []
    assert found["process"]["capabilities"]["effective"] == (["CAP_SYS_PTRACE"] if level == "gvisor" else [])
    assert ("CAP_SYS_ADMIN" in found["capabilities"]["bounding"]) is (level == "process")
    assert found["namespaces"]["net"]["owner"] == OWNERS[level]
    assert found["process"]["seccomp"]["mode"] == ("disabled" if level == "process" else "filter")
    if features.shares_kernel:
        assert found["seccomp"] == found["process"]["seccomp"]
        assert found["namespaces"] == found["process"]["namespaces"]
    else:
        assert found["seccomp"]["mode"] == "disabled"
    assert found["process"]["pid"] == seen.running["state"]["pid"]
    assert (found["process"]["user"]["uid"] == 0) is (level == "gvisor"), "runsc runs as root"
    assert found["limits"]["swap"] == 0
    assert (found["oom_killed"], found["ended"]) == (False, None)


def test_what_was_asked_for_is_in_force(level: str, seen: Seen) -> None:
    settings = {one["setting"]: one["differs"] for one in seen.running["settings"]}
    mounts = set() if level in WITHOUT_MOUNTS else {"mount /data", "mount /mnt"}
    assert settings.keys() == {"cpus", "memory", "pids_limit", "disk", "address", "uid", "mount /"} | mounts
    assert set(settings.values()) == {False}
    (publish,) = seen.running["requested"]["publish"]
    assert seen.running["resources"]["published"] == [f"127.0.0.1:{publish['host']}->8080"]


def test_a_paused_one_has_not_ended(seen: Seen) -> None:
    assert seen.paused["state"]["paused"] is True
    assert seen.paused["effective"]["ended"] is None
    assert seen.paused["effective"]["process"]["pid"] == seen.running["effective"]["process"]["pid"]


def test_when_and_why_it_ended(seen: Seen) -> None:
    found = seen.ended["effective"]
    assert seen.ended["state"]["running"] is False
    assert (found["ended"]["code"], found["ended"]["reason"]) == (137, "killed by SIGKILL")
    assert found["oom_killed"] is False
    assert found["process"] is None
    age = datetime.now(UTC) - datetime.fromisoformat(found["ended"]["time"])
    assert timedelta(seconds=-1) < age < timedelta(minutes=5)


def test_one_that_ran_out_of_memory_says_so(level: str, nothing_left_of_the_shared_one: None) -> None:
    name = f"inspect-oom-{level}"
    done("run", "-d", "--isolation", level, "--name", name, "-m", "128m", "--", *BOMB)
    try:
        assert done("wait", name) == "137\n"
        found = shown(name)
    finally:
        done("rm", "-f", name)
    jsonschema.validate([found], SCHEMA)
    assert found["effective"]["oom_killed"] is True
    assert (found["effective"]["ended"]["code"], found["effective"]["ended"]["reason"]) == (137, "out of memory")
