"""An isolation level without any isolation: its engine is a directory of small files, one per sandbox.

Files, so that what a killed command has made is still there for the next one, as with a real engine.
"""

# ruff: noqa: ARG002 - the interface fixes what methods take
from __future__ import annotations

import json
import signal
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sandbox.errors import EngineError
from sandbox.failpoints import Failpoint, reached
from sandbox.host import Missing
from sandbox.isolation.base import (
    Attached,
    ExecResult,
    Features,
    Isolation,
    Progress,
    Sandbox,
    State,
    Stats,
    WindowSize,
)
from sandbox.isolation.in_force import Inspection
from sandbox.spec import Limits, SandboxSpec
from sandbox.state.record import Record

LEVEL = "fake"


class FakeIsolation(Isolation):
    """The level. `root` is where the engine keeps its files."""

    name = LEVEL
    features = Features(shares_kernel=True)

    def __init__(self, root: Path) -> None:
        self.root = root

    def missing(self) -> Sequence[Missing]:
        return ()

    def check(self, spec: SandboxSpec) -> None:
        """Everything goes."""

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        (self.root / "shared").touch()

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> FakeSandbox:
        sandbox = FakeSandbox(record, self.root)
        undo.callback(sandbox.remove)
        sandbox.write(running=False, paused=False, code=None)
        reached(Failpoint.CONTAINER_CREATED)
        return sandbox

    def adopt(self, record: Record) -> FakeSandbox:
        return FakeSandbox(record, self.root)

    def idents(self) -> list[str]:
        """Of everything that the engine has."""
        return sorted(path.stem for path in self.root.glob("*.json"))

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        strays = [ident for ident in self.idents() if ident not in known]
        for ident in strays if not dry_run else ():
            (self.root / f"{ident}.json").unlink(missing_ok=True)
        return [f"fake {ident}" for ident in strays]

    def remove_shared(self) -> list[str]:
        (self.root / "shared").unlink(missing_ok=True)
        return []


class FakeSandbox(Sandbox):
    """One file."""

    def __init__(self, record: Record, root: Path) -> None:
        self.record = record
        self.path = root / f"{record.id}.json"

    def write(self, **fields: Any) -> None:
        """Change what the engine knows."""
        known = self._read() or {}
        self.path.write_text(json.dumps(known | fields))

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        return found

    def _running(self) -> dict[str, Any]:
        found = self._read()
        if found is None or not found["running"]:
            raise EngineError(f"sandbox {self.record.name} is not running")
        return found

    def boot(self, deadline: float) -> None:
        """Nothing boots."""

    def start(self) -> None:
        self.write(running=True)

    def state(self) -> State:
        found = self._read()
        if found is None:
            return State(running=False)
        return State(running=found["running"], exit_code=found["code"], paused=found["paused"])

    def limits(self) -> Limits:
        spec = self.record.spec
        return Limits(spec.cpus, spec.memory, spec.pids_limit, LEVEL, spec.disk)

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        self._running()
        return ExecResult(0, " ".join(argv).encode(), b"")

    def attach(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        terminal: WindowSize | None = None,
        root: bool = False,
        env: Sequence[tuple[str, str]] = (),
        workdir: str | None = None,
    ) -> Attached:
        raise EngineError("nothing can be attached to here")

    def stats(self) -> Stats:
        return Stats(None, None, None)

    def resources(self) -> dict[str, Any]:
        return {}

    def inspection(self) -> Inspection:
        raise EngineError("there is nothing to be looked at here")

    def kill(self, number: int) -> None:
        self._running()
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.write(running=False, paused=False, code=128 + number)

    def pause(self) -> None:
        self._running()
        self.write(paused=True)

    def unpause(self) -> None:
        self._running()
        self.write(paused=False)

    def stop(self, grace: float) -> int | None:
        found = self._read()
        if found is not None and found["running"]:
            self.write(running=False, paused=False, code=0)
        return self.state().exit_code

    def wait(self, timeout: float | None = None) -> int | None:
        return self.state().exit_code

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        reached(Failpoint.CONTAINER_REMOVED)
