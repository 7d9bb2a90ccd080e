"""The life of a sandbox: order, timing, undo and state. Drivers do the work; this module alone looks at the clock.

Intent is written before each act, every step registers how to undo it, and everything made carries the sandbox's id,
so that a failure, an interrupt or SIGKILL at any moment leaves nothing that `prune` does not find.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from sandbox import catalogue, images, network, readiness
from sandbox.errors import (
    BusyError,
    LimitError,
    NotFoundError,
    NotReadyError,
    SandboxError,
    StoreError,
    UnavailableError,
)
from sandbox.isolation import LEVELS, driver
from sandbox.isolation.base import Isolation, Progress, Sandbox
from sandbox.naming import fresh_name
from sandbox.phases import Phase, Status, Timeline
from sandbox.processid import ProcessId
from sandbox.record import Record
from sandbox.spec import (
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    DEFAULT_PIDS,
    DEFAULT_PORT,
    LISTEN,
    Limits,
    SandboxSpec,
    parse_cpus,
    parse_cpuset,
    parse_env,
    parse_memory,
    parse_name,
    parse_pids,
)
from sandbox.store import Store, named_lock

READY_TIMEOUT = 120.0
"""Seconds from the start of a sandbox's boot to its first reply; an emulated VM on a busy host takes many."""
NETWORK_LOCK = "network"
_LOG_TAIL = 4096


def _silent(message: str) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True)
class Running:
    """A sandbox and its handle.

    Attributes:
        record: what is known of it.
        sandbox: the driver's handle.
    """

    record: Record
    sandbox: Sandbox

    @property
    def url(self) -> str:
        """Where it serves, for the host and the generator."""
        return f"http://{self.record.address}:{self.record.spec.port}/"

    @property
    def timeline(self) -> Timeline:
        """The phases of its start."""
        return self.record.timeline


class Manager:
    """Runs, finds and removes sandboxes. Holds no state but the store's."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self._complete: set[str] = set()
        """Levels that were seen to lack nothing; an engine that dies later is told by its own error."""

    def make_spec(
        self,
        workload: str,
        isolation: str,
        *,
        name: str | None = None,
        cpus: str | None = None,
        memory: str | None = None,
        pids_limit: int | None = None,
        env: Iterable[str] = (),
        cpuset: str | None = None,
    ) -> SandboxSpec:
        """Validate what a user typed; None stands for the default.

        Raises:
            SpecError, NotFoundError: one line that says what was wrong and what would be right.
        """
        if isolation not in LEVELS:
            raise NotFoundError(f"there is no isolation level {isolation!r}", "one of " + ", ".join(LEVELS))
        argv = catalogue.argv(workload, host=LISTEN, port=DEFAULT_PORT)
        allowed = os.sched_getaffinity(0)
        host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return SandboxSpec(
            name=parse_name(name) if name is not None else fresh_name(workload),
            workload=workload,
            isolation=isolation,
            argv=argv,
            env=parse_env(env, os.environ),
            cpus=parse_cpus(cpus, os.cpu_count()) if cpus is not None else DEFAULT_CPUS,
            memory=parse_memory(memory, host_memory) if memory is not None else DEFAULT_MEMORY,
            pids_limit=parse_pids(pids_limit) if pids_limit is not None else DEFAULT_PIDS,
            cpuset=parse_cpuset(cpuset, allowed) if cpuset is not None else None,
        )

    def run(self, spec: SandboxSpec, *, progress: Progress = _silent, owner: bool = False) -> Running:
        """Bring a sandbox up to its first correct reply. On any failure everything is undone.

        Args:
            spec: as of `make_spec`.
            progress: told what is being done.
            owner: tie the sandbox to this process: when it dies, the sandbox is debris that `prune` removes.

        Raises:
            SandboxError: of the kind that fits; nothing is left.
        """
        self._refuse_user()
        level = driver(spec.isolation)
        level.check(spec)
        self.store.ensure()
        ident, lock = self.store.claim_id()
        # The lock keeps `prune` away while we make it or undo that; the kernel drops it should we die.
        with _closing(lock), ExitStack() as undo:
            undo.callback(self._forget, ident)
            running = self._bring_up(spec, level, ident, undo, progress, owner=owner)
            undo.pop_all()
            return running

    def _bring_up(
        self, spec: SandboxSpec, level: Isolation, ident: str, undo: ExitStack, progress: Progress, *, owner: bool
    ) -> Running:
        clock = _Clock()
        with clock.phase(Phase.PREPARE):
            self._refuse_missing(level)
            with named_lock(NETWORK_LOCK):
                network.ensure()
                self.store.mark_used(level.name)
                address = network.allocate(self.store, ident, own_stack=level.own_network)
            listen = "0.0.0.0" if level.own_network else address  # noqa: S104 - of the sandbox's own stack
            spec = replace(spec, argv=tuple(listen if part == LISTEN else part for part in spec.argv))
            record = self.store.new(spec, address, ident)
            if owner:
                record.owner = ProcessId.of(os.getpid())
                self.store.save(record)
            level.prepare(spec, progress)
        with clock.phase(Phase.CREATE):
            progress(f"creating {spec.name}")
            sandbox = level.create(spec, record, undo)
            self.store.save(record)
        deadline = time.monotonic() + READY_TIMEOUT
        with clock.phase(Phase.BOOT):
            if not level.shares_kernel:
                progress(f"booting {spec.name}")
            sandbox.boot(deadline)
        with clock.phase(Phase.START):
            sandbox.start()
            network.isolate_ports()
        with clock.phase(Phase.FIRST_REPLY):
            progress(f"waiting for {spec.name} to answer")
            try:
                readiness.wait_for_reply(
                    address,
                    spec.port,
                    spec.ready_path,
                    deadline=deadline,
                    alive=lambda: sandbox.state().running,
                    name=spec.name,
                )
            except NotReadyError as error:
                raise NotReadyError(error.message, _last_words(sandbox) or error.hint) from None
        record.timeline = clock.timeline
        _check_limits(spec, sandbox.limits())
        record.status = Status.RUNNING
        self.store.save(record)
        return Running(record, sandbox)

    @staticmethod
    def _refuse_user() -> None:
        if os.geteuid() != 0:
            raise UnavailableError("sandboxes need root: namespaces, cgroups and the lab network", "run it with sudo")

    def _refuse_missing(self, level: Isolation) -> None:
        if level.name in self._complete:
            return
        for lack in level.missing():
            raise UnavailableError(f"{level.name} is not available on this host: {lack.reason}", lack.remedy)
        self._complete.add(level.name)

    @contextmanager
    def running(self, spec: SandboxSpec, *, progress: Progress = _silent) -> Iterator[Running]:
        """A sandbox for the time of a block, tied to this process and destroyed at the end."""
        running = self.run(spec, progress=progress, owner=True)
        try:
            yield running
        finally:
            self.destroy(running)

    @contextmanager
    def lab(self) -> Iterator[None]:
        """Be a user of the lab network for the time of a block, so that it stays up between sandboxes.

        Raises:
            EngineError, StoreError
        """
        self._refuse_user()
        self.store.ensure()
        ident, lock = self.store.claim_id()
        with _closing(lock):
            try:
                with named_lock(NETWORK_LOCK):
                    self.store.claim_address(f"lab-{ident}", ident)
                    network.ensure()
                yield
            finally:
                self._forget(ident)

    def get(self, reference: str) -> Running:
        """A sandbox by name, id or the beginning of an id.

        Raises:
            NotFoundError, StoreError
        """
        record = self.store.find(reference)
        return Running(record, driver(record.spec.isolation).adopt(record))

    def everything(self) -> list[Running]:
        """All sandboxes, oldest first; those whose record is broken are left to `prune`."""
        found = []
        for record in self.store.records():
            with suppress(NotFoundError):  # a level that this version does not know
                found.append(Running(record, driver(record.spec.isolation).adopt(record)))
        return found

    def stop(self, reference: str, grace: float) -> int | None:
        """End the workload, keep the rest. Returns the exit code where it can be known.

        Raises:
            NotFoundError, BusyError, EngineError
        """
        running = self.get(reference)
        with self.store.lock(running.record.id):
            code = running.sandbox.stop(grace)
            running.record.status = Status.EXITED
            running.record.data["exit_code"] = code
            self.store.save(running.record)
        return code

    def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove a sandbox; a running one only with `force`.

        Raises:
            NotFoundError, BusyError, EngineError
        """
        running = self.get(reference)
        with self.store.lock(running.record.id, wait=False):
            if not force and running.sandbox.state().running:
                raise BusyError(f"{running.record.name} is running", f"sandbox stop {running.record.name}, or rm -f")
            self.destroy(running)

    def destroy(self, running: Running) -> None:
        """Remove everything of a sandbox, and the lab network with the last one.

        Raises:
            EngineError: something stays; the record stays with it, so that the next try finds it.
        """
        running.sandbox.destroy()
        self._forget(running.record.id)

    def _forget(self, ident: str) -> None:
        self.store.forget(ident)
        self.release_lab()

    def release_lab(self) -> list[str]:
        """Take the lab network down when nobody uses it. Returns a line per thing removed.

        Raises:
            EngineError
        """
        removed: list[str] = []
        with named_lock(NETWORK_LOCK):
            if self.store.used_addresses():
                return removed
            for name in LEVELS:
                if self.store.was_used(name):
                    removed += driver(name).release()
                    self.store.unmark_used(name)
            removed += network.teardown()
        return removed

    def prune(self, *, dry_run: bool = False) -> list[str]:
        """Remove what is not running or belongs to nobody: debris of killed commands, ended sandboxes, orphans.

        Sandboxes that another command is working on are left alone. Returns one line per thing removed.

        Raises:
            SandboxError: the first thing that could not be removed; the rest was still tried.
        """
        self.store.ensure()
        removed: list[str] = []
        failures: list[SandboxError] = []
        for ident in self.store.ids():
            _collect(failures, removed, partial(self._prune_one, ident, dry_run=dry_run))
        known = self.store.known()
        for claim in self.store.stray_claims():
            removed.append(f"claim {claim.parent.name}/{claim.name}")
            if not dry_run:
                claim.unlink(missing_ok=True)
        for level in LEVELS:
            if not _usable(level):
                continue
            _collect(failures, removed, partial(driver(level).sweep, known, dry_run=dry_run))
        _collect(failures, removed, partial(images.sweep, dry_run=dry_run))
        if not dry_run:
            _collect(failures, removed, self.release_lab)
        elif not self.store.used_addresses():
            removed += network.remains()
        if failures:
            raise failures[0]
        return removed

    def _prune_one(self, ident: str, *, dry_run: bool) -> list[str]:
        try:
            with self.store.lock(ident, wait=False):
                try:
                    record = self.store.load(ident)
                except (NotFoundError, StoreError):
                    # Without a sound record its level is unknown: the sweeps find what it made, by its id.
                    if not dry_run:
                        for level in LEVELS:
                            if _usable(level):
                                driver(level).sweep(self.store.known(but=ident), dry_run=False)
                        self.store.forget(ident)
                    return [f"broken record {ident}"]
                sandbox = driver(record.spec.isolation).adopt(record)
                if not _is_debris(record, sandbox):
                    return []
                if not dry_run:
                    sandbox.destroy()
                    self.store.forget(ident)
                return [f"sandbox {record.name} ({record.spec.isolation}, {ident})"]
        except (BusyError, NotFoundError):
            return []


def _usable(level: str) -> bool:
    return not driver(level).missing()


def _is_debris(record: Record, sandbox: Sandbox) -> bool:
    if record.status is not Status.RUNNING:
        return True
    if record.owner is not None and not record.owner.alive():
        return True
    return not sandbox.state().running


def _collect(failures: list[SandboxError], removed: list[str], act: Callable[[], list[str]]) -> None:
    try:
        removed += act()
    except SandboxError as error:
        failures.append(error)


def _check_limits(spec: SandboxSpec, limits: Limits) -> None:
    """Compare limits read back with those asked for; a quota is rounded to a microsecond per period.

    Raises:
        LimitError: one differs, or cannot be observed.
    """
    wanted = {"cpus": spec.cpus, "memory": spec.memory, "pids": spec.pids_limit}
    for name, value in wanted.items():
        got = getattr(limits, name)
        slack = 0.001 * value if name == "cpus" else 4096 if name == "memory" else 0
        if got is None or abs(got - value) > slack:
            raise LimitError(f"the limit on {name} was set to {value:g} but reads back as {got}", limits.source)


def _last_words(sandbox: Sandbox) -> str | None:
    """The last line of the log, for the error message."""
    with suppress(SandboxError):
        tail = b"".join(sandbox.logs())[-_LOG_TAIL:].decode("utf-8", "replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        if lines:
            return "its log ends: " + "".join(c if c.isprintable() else "?" for c in lines[-1])
    return None


class _Clock:
    """Times phases by one monotonic clock of the host."""

    def __init__(self) -> None:
        self.timeline = Timeline()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        begin = time.monotonic_ns()
        yield
        self.timeline.record(phase, begin, time.monotonic_ns())


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
