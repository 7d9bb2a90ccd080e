"""A driver whose sandboxes are nothing but notes in memory, for tests of the command line. Commands run on this host.

`python -m tests.unit.faked ARG...` is the command `sandbox` with it; $FAKED has a list of sandboxes to begin with, each
with the arguments of `add`, as JSON.
"""

# ruff: noqa: ARG002 - what is overridden takes what its base is given

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import sandbox.isolation
from sandbox.cli import main
from sandbox.errors import CommandNotFoundError, EngineError
from sandbox.host import Missing
from sandbox.interrupts import LOOK_EVERY
from sandbox.isolation import inspection
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
from sandbox.isolation.keeper import STDOUT
from sandbox.isolation.log import Piece
from sandbox.phases import Phase, Status
from sandbox.spec import SANDBOX_UID, Limits, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Exit, Record
from sandbox.state.store import Store

LEVEL = "namespace"


class FakeAttached(Attached):
    """A command of this host, with a terminal where asked."""

    def __init__(self, argv: Sequence[str], streams: tuple[int | None, int, int], terminal: WindowSize | None) -> None:
        stdin, stdout, stderr = streams
        self._master: int | None = None
        self._pump: threading.Thread | None = None
        if terminal is None:
            source = subprocess.DEVNULL if stdin is None else stdin
            self._process = self._run(argv, source, stdout, stderr, session=False)
            return
        self._master, slave = pty.openpty()
        self.resize(terminal)
        self._process = self._run(argv, slave, slave, slave, session=True)
        os.close(slave)
        self._pump = threading.Thread(target=self._out, args=(stdout,), daemon=True)
        self._pump.start()
        if stdin is not None:
            threading.Thread(target=self._in, args=(stdin,), daemon=True).start()

    @staticmethod
    def _run(argv: Sequence[str], stdin: int, stdout: int, stderr: int, *, session: bool) -> subprocess.Popen[bytes]:
        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        try:
            return subprocess.Popen(
                list(argv),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=own_terminal if session else None,  # noqa: PLW1509 - no thread of ours holds a lock then
            )
        except FileNotFoundError:
            raise CommandNotFoundError(f"there is no command {argv[0]!r} inside") from None

    def _out(self, stdout: int) -> None:
        assert self._master is not None
        with suppress(OSError):
            while data := os.read(self._master, 4096):
                os.write(stdout, data)

    def _in(self, stdin: int) -> None:
        assert self._master is not None
        with suppress(OSError):
            while data := os.read(stdin, 4096):
                os.write(self._master, data)

    def resize(self, size: WindowSize) -> None:
        if self._master is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))

    def wait(self) -> int:
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(LOOK_EVERY)
                break
        if self._pump is not None:
            self._pump.join(5)
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Handle:
    """What a fake sandbox is, and what it was told, as JSON."""

    fake: str


def fake(record: Record) -> dict[str, Any]:
    """What the handle says."""
    handle = record.read_handle(Handle)
    found: dict[str, Any] = json.loads(handle.fake) if handle is not None else {}
    return found


class FakeSandbox(Sandbox):
    """A sandbox that is what its record's handle says."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.fake = fake(record)

    def _note(self, **values: Any) -> None:
        store = Store()
        record = store.load(self.record.id)
        self.fake = fake(record)
        self.fake.update(values)
        self.fake.setdefault("calls", []).append(values)
        record.keep_handle(Handle(json.dumps(self.fake)))
        store.save(record)
        self.record.handle = record.handle

    def boot(self, deadline: float) -> None:
        raise EngineError("a fake one does not boot")

    def start(self) -> None:
        raise EngineError("a fake one does not start")

    def state(self) -> State:
        running = self.record.process is not None and self.record.process.alive() and "stop" not in self.fake
        return State(running, self.fake.get("exit_code"), None, bool(self.fake.get("paused")))

    def limits(self) -> Limits:
        spec = self.record.spec
        return Limits(spec.cpus, spec.memory, spec.pids_limit, "fake", spec.disk)

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        done = subprocess.run(list(argv), capture_output=True, timeout=timeout, check=False)
        return ExecResult(done.returncode, done.stdout, done.stderr)

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
        self._note(attach={"argv": list(argv), "root": root, "env": [list(pair) for pair in env], "workdir": workdir})
        return FakeAttached(argv, (stdin, stdout, stderr), terminal)

    def pieces(self, **options: Any) -> Iterator[Piece]:
        yield Piece(STDOUT, 0.0, " ".join(f"{name}={options[name]}" for name in ("follow", "tail")).encode() + b"\n")

    def stats(self) -> Stats:
        if "stats" not in self.fake:
            return Stats(None, None, None)
        return Stats(*self.fake["stats"])

    def resources(self) -> dict[str, Any]:
        return {}

    def inspection(self) -> Inspection:
        return inspected(self.record, self.limits(), **self.fake.get("files", {}))

    def kill(self, number: int) -> None:
        self._note(kill=number)

    def pause(self) -> None:
        self._note(paused=True)

    def unpause(self) -> None:
        self._note(paused=False)

    def stop(self, grace: float) -> int | None:
        self._note(stop=grace)
        return 143

    def wait(self, timeout: float | None = None) -> int | None:
        code: int | None = self.fake.get("exit_code")
        return code

    def remove(self) -> None:
        """There is nothing to remove."""


def inspected(record: Record, limits: Limits, **files: str) -> Inspection:
    """What a kernel would say of which somebody wrote these files of its process 1."""
    said = {
        "status": f"Name:\tinit\nUid:\t1\t{SANDBOX_UID}\t1\t1\n",
        "mountinfo": "1 0 0:1 / / ro,nosuid - ext4 /dev/vda rw\n",
        "net/fib_trie": f"     |-- {record.address}\n        /32 host LOCAL\n",
    } | files
    answer = "pid:1\n" + "".join(f"/proc/1/{name}:{line}\n" for name, text in said.items() for line in text.split("\n"))
    view = inspection.inside(answer)
    return inspection.inspection(
        view,
        None,
        inspection.limits_in_force(limits, view),
        inspection.network_of(view, record.address, own=True),
        (False, None),
    )


class FakeIsolation(Isolation):
    """A level that makes nothing."""

    name = LEVEL
    features = Features(shares_kernel=True)

    def missing(self) -> Sequence[Missing]:
        return ()

    def check(self, spec: SandboxSpec) -> None:
        """Everything is honoured as well as anything."""

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        raise EngineError("a fake level makes nothing")

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> Sandbox:
        raise EngineError("a fake level makes nothing")

    def adopt(self, record: Record) -> Sandbox:
        return FakeSandbox(record)

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        return []

    def remove_shared(self) -> list[str]:
        return []


def install() -> None:
    """Put the fake driver in the place of the real one, for this process."""
    sandbox.isolation._loaded[LEVEL] = FakeIsolation()


def add(
    name: str,
    *,
    running: bool = True,
    fake: dict[str, Any] | None = None,
    noted: dict[str, Any] | None = None,
    code: int | None = None,
    **fields: Any,
) -> Record:
    """Write the record of a sandbox. One that runs has this very process as its init.

    Args:
        name: its name.
        running: whether it runs.
        fake: what the fake level is to say of it.
        noted: fields of its record.
        code: the exit code that was noted.
        fields: of its spec.
    """
    store = Store()
    store.ensure()
    ident, lock = store.claim_id()
    try:
        fields = {"workload": "reactor", "isolation": LEVEL, "argv": ("true",)} | fields
        record = store.new(SandboxSpec(name=name, **fields), f"198.18.7.{len(store.ids())}", ident)
        begin = 1_000_000_000
        for phase in Phase:
            record.timeline.record(phase, begin, begin + 5_000_000)
            begin += 5_000_000
        record.status = Status.RUNNING if running else Status.EXITED
        me = ProcessId.of(os.getpid())
        assert me is not None
        record.process = me if running else ProcessId(me.pid, me.start_time + 1, me.boot_id)
        for key, value in (noted or {}).items():
            setattr(record, key, value)
        if code is not None:
            record.exit = Exit(code, 0.0)
        record.keep_handle(Handle(json.dumps(fake or {})))
        store.save(record)
        return record
    finally:
        os.close(lock)


def note(record: Record) -> dict[str, Any]:
    """What the driver was told, by the record on disk."""
    return fake(Store().load(record.id))


if __name__ == "__main__":
    install()
    for entry in json.loads(os.environ.get("FAKED", "[]")):
        add(**entry)
    main()
