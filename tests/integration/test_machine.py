"""Every verb in any order against a model, on the level `namespace`: store, kernel and model agree after every step.

The kernel is asked itself: control groups and what runs in them, links on the bridge. See tests/machine.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sandbox.failpoints import Failpoint
from sandbox.kernel.cgroup import Group, all_groups
from sandbox.network import lab
from sandbox.spec import SandboxSpec
from sandbox.state.store import Store
from tests import leaks, machine
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.level("namespace"), pytest.mark.slow, pytest.mark.timeout(300)]
_SETTLE = 5.0
"""Seconds in which the kernel takes the links of a dead namespace away."""
WAY_IN = tuple(one for one in Failpoint if one < Failpoint.ENDING)
WAY_OUT = tuple(one for one in Failpoint if one >= Failpoint.REMOVING)


class InTheKernel(machine.Lifecycle):
    """The life of sandboxes in namespaces."""

    passes = {"run": len(WAY_IN), "rm": len(WAY_OUT)}  # noqa: RUF012 - a constant of the base class

    def __init__(self) -> None:
        super().__init__()
        assert not Store().used_addresses(), "this test needs the lab network for itself"

    def spec(self, name: str) -> SandboxSpec:
        return Manager.make_spec("reactor", "namespace", name=name, memory="64m")

    def die(self, at: int, verb: str, name: str) -> None:
        failpoint = (WAY_IN if verb == "run" else WAY_OUT)[at]
        command = ["run", "-d", "reactor", "--name", name] if verb == "run" else ["rm", "-f", name]
        before = leaks.keepers()
        plan = json.dumps({"at": [failpoint.value, 0], "signals": ["SIGKILL"]})
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.dying", plan, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, -9), done.stderr
        deadline = time.monotonic() + _SETTLE
        # The keeper of a start whose command was killed removes the sandbox by itself.
        while done.returncode and leaks.keepers() - before and time.monotonic() < deadline:
            time.sleep(0.01)

    def made(self) -> dict[str, bool]:
        groups = {ident: bool(Group(ident).pids()) for ident in all_groups()}
        expected = {lab.interface_name(ident) for ident, alive in groups.items() if alive}
        deadline = time.monotonic() + _SETTLE
        while (links := set(lab.stray_links(()))) - expected and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self.dirty:
            assert links == expected, "a link without a sandbox, or a sandbox without its link"
        return groups

    def await_end(self, running: Running) -> None:
        deadline = time.monotonic() + _SETTLE
        group = Group(running.record.id)
        while (running.sandbox.state().running or group.pids()) and time.monotonic() < deadline:
            time.sleep(0.002)

    def teardown(self) -> None:
        super().teardown()
        assert not Store().used_addresses()
        assert not os.path.exists(f"/sys/class/net/{lab.BRIDGE}"), "the lab outlived its last user"


TestMachine = InTheKernel.TestCase
TestMachine.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
