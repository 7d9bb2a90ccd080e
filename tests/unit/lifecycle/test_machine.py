"""Every verb in any order against a model, on a level whose engine is a directory: store, engine and model agree.

Commands are killed at every kind of failpoint in between, in a process of their own, as SIGKILL would.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sandbox import failpoints, images
from sandbox.failpoints import Failpoint
from sandbox.lifecycle import find, prune, start
from sandbox.lifecycle import lab as lab_life
from sandbox.network import lab as network
from sandbox.network import publish, vagrant
from sandbox.spec import SandboxSpec
from sandbox.state import paths
from sandbox.state.store import Store
from tests import machine
from tests.unit.fake_level import LEVEL, FakeIsolation


class OnFiles(machine.Lifecycle):
    """The life of sandboxes of the fake level, in a state directory of their own."""

    passes = {"run": 20, "rm": 9}  # noqa: RUF012 - a constant of the base class

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        root = Path(self._directory.name)
        self.engine = root / "engine"
        self.engine.mkdir()
        level = FakeIsolation(self.engine)
        self._patch = pytest.MonkeyPatch()
        self._patch.setenv(paths.STATE_ENV, str(root / "state"))
        for module in (find, lab_life, prune, start):
            self._patch.setattr(module, "driver", lambda _: level)
        for module in (lab_life, prune):
            self._patch.setattr(module, "LEVELS", {LEVEL: "here"})
        self._patch.setattr(lab_life, "need_root", lambda: None)
        self.lab = self.engine / "lab"
        self._patch.setattr(network, "ensure", self.lab.touch)
        self._patch.setattr(network, "teardown", self._take_down)
        self._patch.setattr(network, "remains", lambda: ["lab"] if self.lab.exists() else [])
        self._patch.setattr(network, "isolate_ports", lambda *_: None)
        for module in (publish, images):
            self._patch.setattr(module, "prune", lambda *_, **__: [])
        self._patch.setattr(vagrant, "prune", lambda **_: [])
        for what in ("teardown", "remains"):
            self._patch.setattr(publish, what, list)
        super().__init__()
        Store().ensure()

    def _take_down(self) -> list[str]:
        self.lab.unlink(missing_ok=True)
        return []

    def spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(name, "fake", LEVEL, ("server",), port=None)

    def die(self, at: int, verb: str, name: str) -> None:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                left = at

                def listen(_: Failpoint) -> None:
                    nonlocal left
                    if left == 0:
                        os._exit(0)
                    left -= 1

                failpoints.listener = listen
                if verb == "run":
                    self.manager.run(self.spec(name))
                else:
                    self.manager.remove(name, force=True)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def made(self) -> dict[str, bool]:
        level = FakeIsolation(self.engine)
        return {ident: '"running": true' in (self.engine / f"{ident}.json").read_text() for ident in level.idents()}

    def teardown(self) -> None:
        try:
            super().teardown()
            assert not self.lab.exists(), "the lab outlived its last user"
            left = [path for path in (paths.state_dir()).rglob("*") if path.is_file() and path.parent.name != "locks"]
            assert left == []
        finally:
            self._patch.undo()
            self._directory.cleanup()


TestMachine = OnFiles.TestCase
TestMachine.settings = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
