"""Start a sandbox: order, timing, undo and state. Drivers do the work; only this module measures durations.

Each step is recorded before it is done and registers how to undo it, and every resource carries the sandbox's id. So
`prune` finds everything that a failure, an interrupt or SIGKILL may leave behind at any moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from sandbox.errors import EngineError, LimitError, NotReadyError, SandboxError, SpecError, UnavailableError
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import deferred
from sandbox.isolation import driver
from sandbox.isolation.base import Isolation, Progress, Sandbox
from sandbox.lifecycle import background, lab
from sandbox.lifecycle.find import Running
from sandbox.lifecycle.remove import remove as remove_sandbox
from sandbox.network import lab as network
from sandbox.network import publish, readiness
from sandbox.phases import Phase, Status, Timeline
from sandbox.spec import LISTEN, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from sandbox.state.store import Store, named_lock

if TYPE_CHECKING:
    from sandbox.request.application import Application

READY_TIMEOUT = 120.0
"""Seconds from the start of the boot to the first reply; an emulated VM on a busy host needs many of them."""
GUEST_SHARE = 4
"""An application's files may take 1/GUEST_SHARE of a guest's memory, which holds them twice during unpacking."""
_END_NOTED = 2.0
"""Seconds that an engine may take to note the end of a workload."""
_LOG_LINES, _LOG_BYTES = 100, 65536
"""Lines and bytes of the log to show when a start fails: more than a traceback has."""
_complete: set[str] = set()
"""Levels that lacked nothing when checked; if an engine dies later, its own error says so."""


def silent(message: str) -> None:
    """Ignore a progress message."""


def start(
    spec: SandboxSpec,
    *,
    application: Application | None = None,
    progress: Progress = silent,
    owner: bool = False,
    follow: bool = False,
    remove: bool = False,
    then: Callable[[Running], object] | None = None,
) -> Running:
    """Bring a sandbox up to its first correct reply, if it has a known port. On any failure everything is undone.

    Args:
        spec: from `request.resolve.make`.
        application: of the same request; its files are copied into the sandbox.
        progress: called with a line per step.
        owner: tie the sandbox to this process: once it has ended, `prune` removes the sandbox. Otherwise the sandbox
            runs in the background, watched by its keeper.
        follow: the caller reads `sandbox.output()`, and the workload is blocked if the caller is too slow.
        remove: without an owner, remove the sandbox when the workload ends by itself.
        then: called with the sandbox once it is up, while an error or a signal still undoes everything. A signal just
            after this function returns would leave the sandbox behind.

    Raises:
        SandboxError: the start failed; nothing is left behind.
    """
    lab.need_root()
    level = driver(spec.isolation)
    level.check(spec)
    store = Store()
    store.ensure()
    with ExitStack() as unlock, ExitStack() as undo:
        with deferred():
            ident, lock = store.claim_id()
            # The lock keeps `prune` away during the start and its undoing; the kernel drops it if we die.
            unlock.callback(os.close, lock)
            undo.callback(lab.remove_intent, ident)
        try:
            if spec.publish:
                undo.callback(lab.unpublish, ident)
                publish.claim(store, ident, spec.publish)
            running = _bring_up(spec, application, level, ident, undo, progress, owner=owner, follow=follow)
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


@contextmanager
def running(spec: SandboxSpec, *, progress: Progress = silent) -> Iterator[Running]:
    """Yield a sandbox that is tied to this process, and removed at the end of the block."""
    made = start(spec, progress=progress, owner=True)
    try:
        yield made
    finally:
        remove_sandbox(made, force=True)


def _bring_up(
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
    store, clock = Store(), Clock()
    own_network = level.features.own_network
    with clock.phase(Phase.PREPARE):
        _refuse_missing(level)
        with named_lock(lab.LOCK):
            network.ensure()
            reached(Failpoint.NETWORK_UP)
            store.mark_used(level.name)
            address = network.allocate(store, ident, own_stack=own_network)
        listen = "0.0.0.0" if own_network else address  # noqa: S104 - of the sandbox's own stack
        spec = replace(spec, argv=tuple(listen if part == LISTEN else part for part in spec.argv))
        record = store.new(spec, address, ident, ProcessId.of(os.getpid()) if owner else None)
        if spec.app:
            stage(application, record, level)
            reached(Failpoint.APP_STAGED)
        level.prepare(spec, progress)
        reached(Failpoint.IMAGE_READY)
    with clock.phase(Phase.CREATE):
        progress(f"creating {spec.name}")
        sandbox = level.create(spec, record, undo)
        store.save(record)
        reached(Failpoint.CREATED)
    deadline = time.monotonic() + READY_TIMEOUT
    with clock.phase(Phase.BOOT):
        if not level.features.shares_kernel:
            progress(f"booting {spec.name}")
        sandbox.boot(deadline)
        reached(Failpoint.BOOTED)
    with clock.phase(Phase.START):
        sandbox.start()
        if sandbox.keeper is not None and not follow:
            sandbox.keeper.stop_following()
        reached(Failpoint.STARTED)
        if own_network:
            network.isolate_ports(ident)
        reached(Failpoint.ISOLATED)
        if spec.publish:
            with named_lock(lab.LOCK):
                publish.publish(ident, address, spec.publish)
            reached(Failpoint.PUBLISHED)
    with clock.phase(Phase.FIRST_REPLY):
        if spec.port is not None:
            progress(f"waiting for {spec.name} to answer")
            await_reply(sandbox, record, spec.port, deadline)
    reached(Failpoint.REPLIED)
    record.timeline = clock.timeline
    check_limits(spec, sandbox)
    reached(Failpoint.LIMITS_READ)
    record.status = Status.RUNNING
    store.save(record)
    reached(Failpoint.SAVED_RUNNING)
    return Running(sandbox)


def _refuse_missing(level: Isolation) -> None:
    if level.name in _complete:
        return
    for lack in level.missing():
        raise UnavailableError(f"{level.name} is not available on this host: {lack.reason}", lack.remedy)
    _complete.add(level.name)


def stage(application: Application | None, record: Record, level: Isolation) -> None:
    """Copy the application's files to the directory from which the driver takes them.

    Raises:
        SpecError, StoreError
    """
    from sandbox.request import staging  # most starts stage nothing

    if application is None:
        raise SpecError(f"{record.name} needs the directory of its application", "start it with `sandbox run`")
    limit, reason = staging.MAX_TOTAL, ""
    if level.features.machine:
        limit = min(limit, record.spec.memory // GUEST_SHARE)
        reason = f", since a {level.name} keeps them in memory, and they may take a quarter of it"
    staging.stage(application.directory, application.files, record.app_path, limit, reason)


def await_reply(sandbox: Sandbox, record: Record, port: int, deadline: float) -> None:
    """Wait until the sandbox serves a correct reply.

    Args:
        sandbox: has been started.
        record: of the sandbox.
        port: TCP.
        deadline: a value of time.monotonic().

    Raises:
        NotReadyError: it ended, or served no correct reply in time; has the end of its log.
        EngineError: its keeper was killed.
    """

    def alive() -> bool:
        kept = sandbox.keeper
        if kept is not None and not kept.ended():
            return True  # the keeper would have reported the end; this is called often, so it must be fast
        if kept is not None and kept.died():
            raise EngineError(f"the keeper of {record.name} was killed, so its output cannot be logged any more")
        return sandbox.state().running

    try:
        readiness.wait_for_reply(
            record.address,
            port,
            record.spec.ready_path,
            deadline=deadline,
            alive=alive,
            name=record.name,
        )
    except NotReadyError as error:
        output = _last_output(sandbox)
        last = "".join(char if char.isprintable() else "?" for char in output.rpartition("\n")[2].strip())
        hint = f"its log ends: {last}" if last else error.hint
        raise NotReadyError(error.message, hint, output) from None


def check_limits(spec: SandboxSpec, sandbox: Sandbox) -> None:
    """Read the limits back and compare them with the requested ones; a quota is rounded to a microsecond per period.

    A command without a port may have ended by now, and its cgroup with it; then only limits that can still be read are
    compared.

    Raises:
        LimitError: one differs, or cannot be observed.
        EngineError: they cannot be read.
    """
    try:
        limits = sandbox.limits()
    except EngineError:
        if _is_over(spec, sandbox):
            return
        raise
    wanted = {"cpus": spec.cpus, "memory": spec.memory, "pids": spec.pids_limit, "disk": spec.disk}
    for name, value in wanted.items():
        got = getattr(limits, name)
        slack = 0.001 * value if name == "cpus" else 4096 if name in ("memory", "disk") else 0
        if got is None and _is_over(spec, sandbox):
            continue
        if got is None or abs(got - value) > slack:
            raise LimitError(f"the limit on {name} was set to {value:g} but reads back as {got}", limits.source)


def _is_over(spec: SandboxSpec, sandbox: Sandbox) -> bool:
    """Return whether a command without a port has ended. Its engine may note that a moment later."""
    if spec.port is not None:
        return False
    try:
        sandbox.wait(_END_NOTED)
    except TimeoutError:
        return False
    return True


def _last_output(sandbox: Sandbox) -> str:
    """Return the end of the log, without trailing blank lines."""
    with suppress(SandboxError):
        return b"".join(sandbox.logs(tail=_LOG_LINES))[-_LOG_BYTES:].decode("utf-8", "replace").rstrip()
    return ""


class Clock:
    """A stopwatch for the phases of a start, using the host's monotonic clock."""

    def __init__(self) -> None:
        self.timeline = Timeline()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Measure the block's duration; it is not recorded if the block raises."""
        begin = time.monotonic_ns()
        yield
        self.timeline.record(phase, begin, time.monotonic_ns())
