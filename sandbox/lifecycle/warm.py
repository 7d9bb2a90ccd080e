"""Warm starts: prepare starts ahead of time, each to be used by one sandbox.

At a level that can fork (`Forking`), a zygote is prepared. At one with `warm_by_pause`, a sandbox is started up to its
first reply and paused; a warm start renames it and unpauses it. Each prepared start is used only once.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from sandbox.errors import BusyError, NotFoundError, SpecError, UnavailableError
from sandbox.interrupts import deferred
from sandbox.isolation import LEVELS, driver
from sandbox.isolation.base import Forking, Progress
from sandbox.lifecycle import lab
from sandbox.lifecycle.background import detach
from sandbox.lifecycle.find import Running, adopt, held
from sandbox.lifecycle.remove import remove, remove_held
from sandbox.lifecycle.start import Clock, await_reply, start
from sandbox.phases import Phase
from sandbox.spec import LISTEN, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from sandbox.state.store import Store

_READY_TIMEOUT = 30.0


def check(spec: SandboxSpec) -> None:
    """Refuse a spec that does not support warm starts.

    Raises:
        SpecError
    """
    level = driver(spec.isolation)
    if not (isinstance(level, Forking) or level.features.warm_by_pause):
        able = [one for one in LEVELS if isinstance(driver(one), Forking) or driver(one).features.warm_by_pause]
        raise SpecError(f"--warm: there is no warm start at level {spec.isolation}", "one of " + ", ".join(able))
    if spec.publish or spec.mounts or spec.app:
        raise SpecError("--warm cannot be combined with a published port, a mount or an application")


def fill(spec: SandboxSpec, count: int, progress: Progress) -> list[str]:
    """Prepare starts of a spec, whose name is ignored; return a line for each.

    Raises:
        SandboxError
    """
    check(spec)
    level = driver(spec.isolation)
    if isinstance(level, Forking):
        Store().ensure()
        level.start_zygote(progress)
        return [f"zygote, process {level.zygote()}"]
    return [f"{spec.isolation} {_prepare(spec, progress).name}" for _ in range(count)]


def _prepare(spec: SandboxSpec, progress: Progress) -> Record:
    name = f"warm-{spec.workload[:40]}-{secrets.token_hex(3)}"
    running = start(replace(spec, name=name), progress=progress, owner=True)
    with held(running):
        running.sandbox.pause()
        record = running.record
        record.owner = None  # until here, `prune` would have removed it if we had died
        record.paused, record.warm = True, key(spec)
        Store().save(record)
    detach(running, remove=False)
    return record


def key(spec: SandboxSpec) -> str:
    """Return the part of a spec that two specs must share for one prepared start to serve either."""
    argv = tuple("0.0.0.0" if part == LISTEN else part for part in spec.argv)  # noqa: S104 - of the sandbox's own stack
    return json.dumps(replace(spec, name="", argv=argv, warm=False).to_json(), sort_keys=True)


def start_warm(
    spec: SandboxSpec,
    *,
    progress: Progress,
    owner: bool,
    follow: bool = False,
    remove: bool = False,
    then: Callable[[Running], object] | None,
) -> Running:
    """Use a prepared start.

    Raises:
        UnavailableError: nothing is prepared for this spec.
        SandboxError: as for `start.start`.
    """
    check(spec)
    level = driver(spec.isolation)
    if not isinstance(level, Forking):
        return _take_paused(spec, owner=owner, remove=remove, then=then)
    if level.zygote(current=True) is None:
        raise _nothing(spec)
    warm = replace(spec, warm=True)
    return start(warm, progress=progress, owner=owner, follow=follow, remove=remove, then=then)


def _take_paused(spec: SandboxSpec, *, owner: bool, remove: bool, then: Callable[[Running], object] | None) -> Running:
    wanted, store = key(spec), Store()
    begun = time.monotonic_ns()
    for record in waiting():
        if record.warm != wanted:
            continue
        try:
            with store.lock(record.id, wait=False):
                current = store.load(record.id)
                if current.warm == wanted:
                    current.remove_at_end = remove and not owner
                    return _take(spec, current, begun, owner=owner, then=then)
        except (BusyError, NotFoundError):
            continue  # another command has just taken it
    raise _nothing(spec)


def _take(
    spec: SandboxSpec, record: Record, begun: int, *, owner: bool, then: Callable[[Running], object] | None
) -> Running:
    store, running, clock = Store(), adopt(record), Clock()
    with deferred():
        store.rename(record, spec.name)
        record.warm, record.paused = None, False
        record.created = time.time()
        record.owner = ProcessId.of(os.getpid()) if owner else None
        store.save(record)
    try:
        clock.timeline.record(Phase.PREPARE, begun, time.monotonic_ns())
        for phase in (Phase.CREATE, Phase.BOOT):
            with clock.phase(phase):
                pass
        with clock.phase(Phase.START):
            running.sandbox.unpause()
        with clock.phase(Phase.FIRST_REPLY):
            if spec.port is not None:
                await_reply(running.sandbox, record, spec.port, time.monotonic() + _READY_TIMEOUT)
        record.timeline = clock.timeline
        store.save(record)
        if then is not None:
            then(running)
    except BaseException:
        with deferred():
            remove_held([running])
            lab.remove_unused()
        raise
    return running


def _nothing(spec: SandboxSpec) -> UnavailableError:
    limits = ", with the same limits and environment" if driver(spec.isolation).features.warm_by_pause else ""
    return UnavailableError(
        f"nothing is prepared for a warm start of {spec.workload} at level {spec.isolation}",
        f"sandbox warm {spec.workload} --isolation {spec.isolation}{limits}",
    )


def waiting() -> list[Record]:
    """Return the records of the paused sandboxes that are prepared for warm starts."""
    return [record for record in Store().records() if record.warm is not None]


def zygotes() -> Iterator[tuple[str, Forking, int]]:
    """Yield level, driver and pid of each running zygote."""
    for name in LEVELS:
        level = driver(name)
        if isinstance(level, Forking) and (pid := level.zygote()) is not None:
            yield name, level, pid


def stop(levels: Collection[str] = LEVELS) -> list[str]:
    """Remove all prepared starts at these levels; return a line for each.

    Raises:
        SandboxError
    """
    removed = []
    for name, level, _ in zygotes():
        if name in levels and level.stop_zygote():
            removed.append("zygote")
    for record in waiting():
        if record.spec.isolation in levels:
            remove(record.id, force=True)
            removed.append(f"{record.spec.isolation} {record.name}")
    return removed
