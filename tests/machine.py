"""The life of sandboxes as a state machine for hypothesis: what a model expects, and what store and engine say.

A subclass says which level runs them, how the engine is asked, and how a command is killed half way.
"""

from __future__ import annotations

import signal
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandbox.errors import BusyError, EngineError, NameTakenError, NotFoundError
from sandbox.lifecycle import pause
from sandbox.phases import Status
from sandbox.spec import SandboxSpec
from sandbox.state import files, paths
from tests.verbs import Manager, Running

NAMES = st.sampled_from(("machine-a", "machine-b", "machine-c"))
SIGNALS = st.sampled_from((signal.SIGTERM, signal.SIGKILL))


@dataclass(slots=True)
class Expected:
    """What the model knows of one sandbox.

    Attributes:
        id: its id.
        state: running, paused, exited; or debris, which a killed command left and only force or prune removes.
    """

    id: str
    state: str

    @property
    def alive(self) -> bool:
        """Whether its workload must be there."""
        return self.state in ("running", "paused")


class Lifecycle(RuleBasedStateMachine):
    """Every verb, in any order, on a few names."""

    passes: ClassVar[dict[str, int]]
    """How many failpoints each verb passes; it is killed at one of so many, or ends by itself."""
    alone: ClassVar[bool] = True
    """Whether nobody else uses the state directory."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = Manager()
        self.model: dict[str, Expected] = {}
        self.ghosts: set[str] = set()
        """Names that a killed command has claimed, and died before there was a record."""
        self.dirty = False
        """Whether a command was killed since the last prune."""

    # --- what a subclass says ------------------------------------------------------------------------------------

    def spec(self, name: str) -> SandboxSpec:
        """Of a sandbox to run."""
        raise NotImplementedError

    def die(self, at: int, verb: str, name: str) -> None:
        """Let another process `run` or `rm -f` a sandbox, and kill it at the failpoint that it passes as number `at`.

        It ends by itself where it passes fewer.
        """
        raise NotImplementedError

    def made(self) -> dict[str, bool]:
        """Ids of what the engine has, ours alone, and whether anything runs there."""
        raise NotImplementedError

    def await_end(self, running: Running) -> None:
        """Return when a sandbox that was sent a deadly signal is dead."""

    # --- rules ---------------------------------------------------------------------------------------------------

    def _expect(self, name: str) -> Running | None:
        """The sandbox of a name; None, after a look that it is rightly not there."""
        if name in self.model:
            return self.manager.get(name)
        with pytest.raises(NotFoundError):
            self.manager.get(name)
        return None

    @rule(name=NAMES)
    def run(self, name: str) -> None:
        if name in self.model or name in self.ghosts:
            with pytest.raises(NameTakenError):
                self.manager.run(self.spec(name))
            return
        running = self.manager.run(self.spec(name))
        self.model[name] = Expected(running.record.id, "running")

    @rule(name=NAMES, at=st.integers(min_value=0, max_value=999))
    def run_killed(self, name: str, at: int) -> None:
        if name in self.model or name in self.ghosts:
            return
        self.die(at % self.passes["run"], "run", name)
        self._look_again(name)

    @rule(name=NAMES, at=st.integers(min_value=0, max_value=999))
    def remove_killed(self, name: str, at: int) -> None:
        if name not in self.model:
            return
        self.die(at % self.passes["rm"], "rm", name)
        self._look_again(name)

    def _look_again(self, name: str) -> None:
        """Learn from the store how far a killed command came: that is the one thing that the model cannot know."""
        self.dirty = True
        before = self.model.pop(name, None)
        with suppress(NotFoundError):
            running = self.manager.get(name)
            sound = running.record.status is Status.RUNNING and running.sandbox.state().running
            state = (before.state if before is not None else "running") if sound else "debris"
            self.model[name] = Expected(running.record.id, state)
            return
        if (paths.names_dir() / name).exists():
            self.ghosts.add(name)

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        if self._expect(name) is None:
            with pytest.raises(NotFoundError):
                self.manager.stop(name, 5)
            return
        self.manager.stop(name, 5)
        self.model[name].state = "exited"

    @rule(name=NAMES, number=SIGNALS)
    def kill(self, name: str, number: signal.Signals) -> None:
        if self._expect(name) is None or self.model[name].state in ("debris", "paused"):
            return
        with self.manager.held(name) as running:
            if not self.model[name].alive:
                with pytest.raises(EngineError):
                    running.sandbox.kill(number)
                return
            running.sandbox.kill(number)
            self.await_end(running)
        self.model[name].state = "exited"

    @rule(name=NAMES)
    def kill_paused(self, name: str) -> None:
        """SIGKILL alone reaches what is held still."""
        if name in self.model and self.model[name].state == "paused":
            with self.manager.held(name) as running:
                running.sandbox.kill(signal.SIGKILL)
                self.await_end(running)
            self.model[name].state = "exited"

    @rule(name=NAMES)
    def pause(self, name: str) -> None:
        if self._expect(name) is None or self.model[name].state == "debris":
            return
        if not self.model[name].alive:
            with pytest.raises(EngineError):
                pause.pause(name)
            return
        pause.pause(name)
        assert self.manager.get(name).record.paused
        self.model[name].state = "paused"

    @rule(name=NAMES)
    def unpause(self, name: str) -> None:
        if self._expect(name) is None or not self.model[name].alive:
            return
        pause.unpause(name)
        assert not self.manager.get(name).record.paused
        self.model[name].state = "running"

    @rule(name=NAMES)
    def exec(self, name: str) -> None:
        running = self._expect(name)
        if running is None or self.model[name].state in ("paused", "debris"):
            return
        if self.model[name].state == "running":
            assert running.sandbox.exec(["/bin/echo", "hello"], timeout=30).exit_code == 0
        else:
            with pytest.raises(EngineError):
                running.sandbox.exec(["/bin/echo", "hello"], timeout=30)

    @rule(name=NAMES, force=st.booleans())
    def remove(self, name: str, force: bool) -> None:
        if self._expect(name) is None:
            with nullcontext() if force else pytest.raises(NotFoundError):
                self.manager.remove(name, force=force)
            return
        force = force or self.model[name].state == "debris"
        if self.model[name].alive and not force:
            with pytest.raises(BusyError):
                self.manager.remove(name)
            return
        self.manager.remove(name, force=force)
        del self.model[name]

    @precondition(lambda self: self.dirty or any(not one.alive for one in self.model.values()))
    @rule()
    def prune(self) -> None:
        dead = {name for name, one in self.model.items() if not one.alive}
        would = self.manager.prune(dry_run=True)
        said = self.manager.prune()
        for name in dead:
            assert any(line.startswith(f"sandbox {name} ") for line in would)
            assert any(line.startswith(f"sandbox {name} ") for line in said)
            del self.model[name]
        assert not [line for line in said if any(line.startswith(f"sandbox {name} ") for name in self.model)]
        self.ghosts.clear()
        self.dirty = False

    # --- what holds after every step -----------------------------------------------------------------------------

    @invariant()
    def the_store_agrees(self) -> None:
        found = {one.record.name: one for one in self.manager.everything() if one.record.name.startswith("machine-")}
        assert {name: one.record.id for name, one in found.items()} == {
            name: one.id for name, one in self.model.items()
        }
        for name, one in self.model.items():
            if one.state != "debris":
                state = found[name].sandbox.state()
                assert (state.running, state.paused) == (one.alive, one.state == "paused"), name

    @invariant()
    def every_claim_has_its_sandbox(self) -> None:
        names = {path.name for path in files.entries(paths.names_dir()) if "machine-" in path.name}
        assert names >= set(self.model) | self.ghosts
        if self.dirty:
            return
        assert names == set(self.model)
        owners = sorted(path.read_text() for path in files.entries(paths.addresses_dir()))
        ids = sorted(one.id for one in self.model.values())
        if self.alone:
            assert owners == ids
            assert [path.name for path in files.entries(paths.sandboxes_dir())] == ids
        assert [owner for owner in owners if owner in ids] == ids

    @invariant()
    def the_engine_agrees(self) -> None:
        made = self.made()
        known = self.manager.store.known()
        assert not [ident for ident in made if ident not in known], "something was made before its intent was written"
        for name, one in self.model.items():
            if one.alive:
                assert made.get(one.id) is True, name
            elif one.state == "exited":
                assert not made.get(one.id), name
        if not self.dirty:
            assert set(made) <= {one.id for one in self.model.values()}

    def teardown(self) -> None:
        for name in list(self.model):
            self.manager.remove(name, force=True)
        self.manager.prune()
        assert not self.made()
