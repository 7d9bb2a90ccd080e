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
from typing import TYPE_CHECKING, Any

from sandbox.errors import (
    BusyError,
    NotFoundError,
    SandboxError,
    StoreError,
    UnavailableError,
)
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import deferred
from sandbox.isolation import driver
from sandbox.isolation.base import Isolation, Progress, Sandbox
from sandbox.lifecycle import background, lab_users
from sandbox.lifecycle import start as starting
from sandbox.network import lab as network
from sandbox.network import publish as publishing
from sandbox.phases import Phase, Status, Timeline
from sandbox.request import resolve
from sandbox.request.resolve import Target
from sandbox.spec import LISTEN, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from sandbox.state.store import Store, named_lock

if TYPE_CHECKING:
    from sandbox.request.application import Application

READY_TIMEOUT = 120.0
"""Seconds from the start of a sandbox's boot to its first reply; an emulated VM on a busy host takes many."""
PATIENCE = 2.0
"""Seconds that a removal waits for another command, which may only be looking: `prune` locks what it looks at."""


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
    def url(self) -> str | None:
        """Where it serves, for the host and the generator; None where nothing is known of a port."""
        if self.record.spec.port is None:
            return None
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

    @staticmethod
    def make_spec(target: Target, isolation: str, **options: Any) -> SandboxSpec:
        """Validate what a user typed: `request.make` for those who run no application.

        Args:
            target: a workload, or a command as a sequence.
            isolation: a level.
            options: the fields of `request.Options`.

        Raises:
            SpecError, NotFoundError: one line that says what was wrong and what would be right.
        """
        return resolve.make(target, isolation, resolve.Options(**options)).spec

    def run(
        self,
        spec: SandboxSpec,
        *,
        application: Application | None = None,
        progress: Progress = _silent,
        owner: bool = False,
        follow: bool = False,
        remove: bool = False,
        then: Callable[[Running], object] | None = None,
    ) -> Running:
        """Bring a sandbox up to its first correct reply, where a port is known. On any failure everything is undone.

        Args:
            spec: as of `request.make`.
            application: whose files it sees; of the same request.
            progress: told what is being done.
            owner: tie the sandbox to this process: when it dies, the sandbox is debris that `prune` removes. Without,
                the sandbox is left to its keeper.
            follow: the caller reads `sandbox.output()`, and the workload waits for it where it must.
            remove: where nobody owns it, remove it when the workload ends by itself.
            then: called with it once it is up, while what goes wrong, a signal among it, still undoes everything. For
                callers who take it over: a signal between our return and their first line would find nobody.

        Raises:
            SandboxError: of the kind that fits; nothing is left.
        """
        self._refuse_user()
        level = driver(spec.isolation)
        level.check(spec)
        self.store.ensure()
        with ExitStack() as unlock, ExitStack() as undo:
            with deferred():
                ident, lock = self.store.claim_id()
                # The lock keeps `prune` away while we make it or undo that; the kernel drops it should we die.
                unlock.callback(os.close, lock)
                undo.callback(self._forget, ident)
            try:
                if spec.publish:
                    undo.callback(lab_users.withdraw, ident)
                    publishing.claim(self.store, ident, spec.publish)
                running = self._bring_up(spec, application, level, ident, undo, progress, owner=owner, follow=follow)
                if not owner:
                    background.detach(running, remove=remove)
                if then is not None:
                    then(running)
            except BaseException:
                with deferred():
                    undo.close()
                raise
            undo.pop_all()
            return running

    def _bring_up(
        self,
        spec: SandboxSpec,
        application: Application | None,
        level: Isolation,
        ident: str,
        undo: ExitStack,
        progress: Progress,
        *,
        owner: bool,
        follow: bool,
    ) -> Running:
        clock = starting.Clock()
        with clock.phase(Phase.PREPARE):
            self._refuse_missing(level)
            with named_lock(lab_users.LOCK):
                network.ensure()
                reached(Failpoint.NETWORK_UP)
                self.store.mark_used(level.name)
                address = network.allocate(self.store, ident, own_stack=level.own_network)
            listen = "0.0.0.0" if level.own_network else address  # noqa: S104 - of the sandbox's own stack
            spec = replace(spec, argv=tuple(listen if part == LISTEN else part for part in spec.argv))
            record = self.store.new(spec, address, ident, ProcessId.of(os.getpid()) if owner else None)
            if spec.app:
                starting.stage(application, record, level)
                reached(Failpoint.APP_STAGED)
            level.prepare(spec, progress)
            reached(Failpoint.IMAGE_READY)
        with clock.phase(Phase.CREATE):
            progress(f"creating {spec.name}")
            sandbox = level.create(spec, record, undo)
            self.store.save(record)
            reached(Failpoint.CREATED)
        deadline = time.monotonic() + READY_TIMEOUT
        with clock.phase(Phase.BOOT):
            if not level.shares_kernel:
                progress(f"booting {spec.name}")
            sandbox.boot(deadline)
            reached(Failpoint.BOOTED)
        with clock.phase(Phase.START):
            sandbox.start()
            if sandbox.keeper is not None and not follow:
                sandbox.keeper.let_go()
            reached(Failpoint.STARTED)
            if level.own_network:
                network.isolate_ports(ident)
            reached(Failpoint.ISOLATED)
            if spec.publish:
                with named_lock(lab_users.LOCK):
                    publishing.publish(ident, address, spec.publish)
                reached(Failpoint.PUBLISHED)
        with clock.phase(Phase.FIRST_REPLY):
            if spec.port is not None:
                progress(f"waiting for {spec.name} to answer")
                starting.await_reply(sandbox, record, spec.port, deadline)
        reached(Failpoint.REPLIED)
        record.timeline = clock.timeline
        starting.check_limits(spec, sandbox)
        reached(Failpoint.LIMITS_READ)
        record.status = Status.RUNNING
        self.store.save(record)
        reached(Failpoint.SAVED_RUNNING)
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
        with ExitStack() as undo:
            with deferred():
                ident, lock = self.store.claim_id()
                undo.callback(os.close, lock)
                undo.callback(self._forget, ident)
            with named_lock(lab_users.LOCK):
                self.store.claim_address(f"lab-{ident}", ident)
                network.ensure()
            yield

    def get(self, reference: str) -> Running:
        """A sandbox by name, id or the beginning of an id.

        Raises:
            NotFoundError, StoreError
        """
        record = self.store.find(reference)
        return Running(record, driver(record.spec.isolation).adopt(record))

    @contextmanager
    def held(self, reference: str) -> Iterator[Running]:
        """A sandbox as of `get`, with its lock for the time of a block: no other command changes it meanwhile.

        Raises:
            NotFoundError, StoreError
        """
        ident = self.store.find(reference).id
        with self.store.lock(ident):
            yield self.get(ident)

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
        with self.held(reference) as running:
            return self.end(running, grace)

    def end(self, running: Running, grace: float) -> int | None:
        """As `stop`, by a handle of which the caller holds the lock (see `held`).

        Raises:
            EngineError
        """
        reached(Failpoint.ENDING)
        code = running.sandbox.stop(grace)
        reached(Failpoint.ENDED)
        if running.record.spec.publish:
            lab_users.withdraw(running.record.id)  # who connects is told at once that nobody listens
        running.record.status = Status.EXITED
        running.record.data["exit_code"] = code
        self.store.save(running.record)
        reached(Failpoint.SAVED_EXITED)
        return code

    def note_end(self, ident: str, code: int | None) -> None:
        """Write down that a workload ended by itself, with its exit code where that is known; its ports are withdrawn.

        Raises:
            EngineError, StoreError
        """
        with suppress(NotFoundError), self.held(ident) as held:  # it may have been removed by now
            if held.record.spec.publish:
                lab_users.withdraw(ident)
            held.record.status = Status.EXITED
            held.record.data["exit_code"] = code
            self.store.save(held.record)
            reached(Failpoint.SAVED_EXITED)

    def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove a sandbox; a running one only with `force`.

        Raises:
            NotFoundError, BusyError, EngineError
        """
        ident = self.store.find(reference).id
        with self.store.lock(ident, patience=PATIENCE):
            running = self.get(ident)
            if not force and running.sandbox.state().running:
                raise BusyError(f"{running.record.name} is running", f"sandbox stop {running.record.name}, or rm -f")
            self.destroy(running)

    def destroy(self, running: Running) -> None:
        """Remove everything of a sandbox, and the lab network with the last one.

        Raises:
            EngineError: something stays; the record stays with it, so that the next try finds it.
        """
        with deferred():
            self.clear(running)
            self._forget(running.record.id)

    def clear(self, running: Running) -> None:
        """Remove everything of a sandbox but its record, its name and its address; `forget` is the rest.

        Raises:
            EngineError: something stays.
        """
        with deferred():
            before = running.record.status
            self.doom(running)
            try:
                running.sandbox.destroy()
            except SandboxError:
                with suppress(SandboxError):
                    if running.sandbox.state().running:  # its engine is away, say, and it serves as before
                        self._note(running.record, before)
                raise
            reached(Failpoint.DESTROYED)
            if running.record.spec.publish:
                lab_users.withdraw(running.record.id)

    def doom(self, running: Running) -> None:
        """Write down that a sandbox is being removed: should we die it is debris, half of one does not pass for sound.

        A full disk, or another command that was quicker, does not hinder the removal.
        """
        if running.record.status is not Status.REMOVING:
            reached(Failpoint.REMOVING)
            self._note(running.record, Status.REMOVING)

    def forget(self, idents: Iterable[str]) -> None:
        """Drop what is written down of sandboxes that were cleared, and take down the lab network with the last.

        Raises:
            StoreError: something is still there; the ids before it are gone.
            EngineError
        """
        with deferred():
            self.store.forget_all(idents)
            self.release_lab()

    def _note(self, record: Record, status: Status) -> None:
        with suppress(StoreError):
            record.status = status
            self.store.save(record)

    def _forget(self, ident: str) -> None:
        self.forget([ident])

    def release_lab(self) -> list[str]:
        """Take the lab network down when nobody uses it. Returns a line per thing removed.

        Raises:
            EngineError
        """
        return lab_users.release(self.store)

    def prune(self, *, dry_run: bool = False, note: Progress = _silent) -> list[str]:
        """Remove what is not running or belongs to nobody: see `pruning.prune`."""
        from sandbox.lifecycle import prune as pruning  # no start needs it

        return pruning.prune(self.store, dry_run=dry_run, note=note)
