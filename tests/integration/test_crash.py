"""Killed at any moment, a command leaves nothing that `prune` does not find; interrupted, it leaves nothing at all."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sandbox.errors import StoreError
from sandbox.isolation import LEVELS
from sandbox.manager import Manager
from sandbox.phases import ORDER, Phase
from tests import leaks

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"vm": (Phase.CREATE, Phase.BOOT, Phase.FIRST_REPLY)}
"""Phases tried at levels whose start takes seconds."""
POINTS = [
    pytest.param(level, phase.value, when, id=f"{level}-{when}-{phase.value}", marks=pytest.mark.level(level))
    for level in LEVELS
    for phase in SLOW.get(level, ORDER)
    for when in ("before", "after")
]


def dying(level: str, phase: str, when: str, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.dying", level, phase, when, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(("level", "phase", "when"), POINTS)
def test_killed_then_pruned(level: str, phase: str, when: str) -> None:
    manager = Manager()
    before = leaks.snapshot()
    # Another sandbox lives through it, untouched.
    with manager.running(manager.make_spec("reactor", "namespace", name="bystander")) as bystander:
        done = dying(level, phase, when, "SIGKILL")
        assert done.returncode == -signal.SIGKILL, done.stderr
        manager.prune()
        assert [one.record.name for one in manager.everything()] == ["bystander"]
        with urllib.request.urlopen(bystander.url, timeout=5) as reply:
            assert reply.status == 200
    assert not leaks.leaked(before)


@pytest.mark.parametrize(("level", "phase", "when"), POINTS)
def test_interrupted_leaves_nothing(level: str, phase: str, when: str) -> None:
    done = dying(level, phase, when, "SIGINT")
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr


@pytest.mark.level("namespace")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_terminated_leaves_nothing(name: str) -> None:
    done = dying("namespace", "first_reply", "after", name)
    assert done.returncode == 128 + getattr(signal, name)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS if level != "vm"]
)
def test_killed_at_random_moments(level: str) -> None:
    chance = random.Random(2544)
    for _ in range(4):
        command = [sys.executable, "-m", "sandbox", "run", "reactor", "--isolation", level]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(chance.uniform(0.1, 1.2))
            process.kill()
            process.communicate()
        Manager().prune()


@pytest.mark.parametrize("level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def test_prune_finds_what_a_lost_store_knew(level: str) -> None:
    """Everything carries the id: with the records gone, the sweep still finds all of it."""
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", level))
    if level == "process":
        # Its directory holds mounts, so it cannot get lost; what is in it can.
        with pytest.raises(StoreError, match="mounted"):
            manager.store.forget(running.record.id)
        (running.record.directory / "record.json").unlink()
    else:
        manager.store.forget(running.record.id)
    manager.prune()
    assert not running.sandbox.state().running


@pytest.mark.parametrize("level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def test_prune_keeps_what_runs(level: str) -> None:
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", level))
    try:
        assert manager.prune() == []
        with urllib.request.urlopen(running.url, timeout=10) as reply:
            assert reply.status == 200
    finally:
        manager.destroy(running)


@pytest.mark.level("namespace")
def test_a_broken_record_is_pruned() -> None:
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", "namespace"))
    (running.record.directory / "record.json").write_text('{"version": 1, "id"')
    assert any("broken record" in line for line in manager.prune())
    assert not running.sandbox.state().running


@pytest.mark.level("namespace")
def test_dry_run_removes_nothing() -> None:
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", "namespace"))
    manager.stop(running.record.name, 5)
    try:
        assert any(running.record.name in line for line in manager.prune(dry_run=True))
        assert manager.get(running.record.name).record.id == running.record.id
    finally:
        manager.remove(running.record.name)
