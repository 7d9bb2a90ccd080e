"""Warm starts: what was prepared ahead, and taken by one sandbox each.

At `namespace` a zygote forks (`isolation.local_warm`). At `container` and `vm` a sandbox is started ahead, up to its
first reply, and paused; a warm start gives it its name and lets it go on. Each is used once: no sandbox gets what
another one has run in.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from sandbox import images
from sandbox.errors import BusyError, NotFoundError, SpecError, UnavailableError
from sandbox.interrupts import deferred
from sandbox.isolation import driver
from sandbox.isolation.base import Progress
from sandbox.isolation.local import warm as local_warm
from sandbox.lifecycle.manager import Manager, Running
from sandbox.network import readiness
from sandbox.phases import Phase, Timeline
from sandbox.spec import LISTEN, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record

ZYGOTE = "namespace"
PAUSED = ("container", "vm")
"""Levels with a warm start, by how they do it."""
KEY = "warm"
"""In a record's data: what the paused sandbox can be taken for."""
_READY_TIMEOUT = 30.0


def check(spec: SandboxSpec) -> None:
    """Refuse what cannot start warm.

    Raises:
        SpecError
    """
    if spec.isolation not in (ZYGOTE, *PAUSED):
        raise SpecError(
            f"--warm: there is no warm start at level {spec.isolation}", "one of " + ", ".join((ZYGOTE, *PAUSED))
        )
    if spec.publish or spec.mounts or spec.app:
        raise SpecError("--warm goes with no published port, mount or application: what is prepared has none of them")


def fill(manager: Manager, spec: SandboxSpec, count: int, progress: Progress) -> list[str]:
    """Prepare starts of a spec; its name is not looked at. Returns a line per thing made.

    Raises:
        SandboxError
    """
    check(spec)
    if spec.isolation == ZYGOTE:
        manager.store.ensure()
        image = images.ensure(images.Form.ROOTFS, progress)
        made = local_warm.start(str(image.path), image.digest)
        return [f"zygote, process {made.pid}"]
    return [f"{spec.isolation} {_prepare(manager, spec, progress).record.name}" for _ in range(count)]


def _prepare(manager: Manager, spec: SandboxSpec, progress: Progress) -> Running:
    name = f"warm-{spec.workload[:40]}-{secrets.token_hex(3)}"
    running = manager.run(replace(spec, name=name), progress=progress, owner=True)
    with manager.held(running.record.id) as held:
        held.sandbox.pause()
        held.record.owner = None  # until here, our death would have made it debris
        held.record.data[KEY] = key(spec)
        manager.store.save(held.record)
        return held


def key(spec: SandboxSpec) -> str:
    """What two specs have in common that one prepared start serves."""
    argv = tuple("0.0.0.0" if part == LISTEN else part for part in spec.argv)  # noqa: S104 - of the sandbox's own stack
    return json.dumps(replace(spec, name="", argv=argv, warm=False).to_json(), sort_keys=True)


def run(
    manager: Manager,
    spec: SandboxSpec,
    *,
    progress: Progress,
    owner: bool = False,
    follow: bool = False,
    remove: bool = False,
    then: Callable[[Running], object] | None = None,
) -> Running:
    """A sandbox by a warm start.

    Raises:
        UnavailableError: nothing is prepared for this spec.
        SandboxError: as of `Manager.run`.
    """
    check(spec)
    if spec.isolation == ZYGOTE:
        if local_warm.running(images.digest(images.Form.ROOTFS)) is None:
            raise _nothing(spec)
        warm = replace(spec, warm=True)
        return manager.run(warm, progress=progress, owner=owner, follow=follow, remove=remove, then=then)
    wanted = key(spec)
    begun = time.monotonic_ns()
    for record in manager.store.records():
        if record.data.get(KEY) != wanted:
            continue
        try:
            with manager.store.lock(record.id, wait=False):
                current = manager.store.load(record.id)
                if current.data.get(KEY) == wanted:
                    return _take(manager, spec, current, begun, owner=owner, then=then)
        except (BusyError, NotFoundError):
            continue  # somebody else has just taken it
    raise _nothing(spec)


def _take(
    manager: Manager,
    spec: SandboxSpec,
    record: Record,
    begun: int,
    *,
    owner: bool,
    then: Callable[[Running], object] | None,
) -> Running:
    sandbox = driver(spec.isolation).adopt(record)
    with deferred():
        manager.store.rename(record, spec.name)
        del record.data[KEY]
        record.created = time.time()
        record.owner = ProcessId.of(os.getpid()) if owner else None
        manager.store.save(record)
    running = Running(record, sandbox)
    try:
        prepared = time.monotonic_ns()
        sandbox.unpause()
        started = time.monotonic_ns()
        if spec.port is not None:
            readiness.wait_for_reply(
                record.address,
                spec.port,
                spec.ready_path,
                deadline=time.monotonic() + _READY_TIMEOUT,
                alive=lambda: sandbox.state().running,
                name=spec.name,
            )
        record.timeline = Timeline()
        record.timeline.record(Phase.PREPARE, begun, prepared)
        for phase in (Phase.CREATE, Phase.BOOT):
            record.timeline.record(phase, prepared, prepared)
        record.timeline.record(Phase.START, prepared, started)
        record.timeline.record(Phase.FIRST_REPLY, started, time.monotonic_ns())
        manager.store.save(record)
        if then is not None:
            then(running)
    except BaseException:
        with deferred():
            manager.destroy(running)
        raise
    return running


def _nothing(spec: SandboxSpec) -> UnavailableError:
    limits = "" if spec.isolation == ZYGOTE else ", with the same limits and environment"
    return UnavailableError(
        f"nothing is prepared for a warm start of {spec.workload} at level {spec.isolation}",
        f"sandbox warm {spec.workload} --isolation {spec.isolation}{limits}",
    )


def waiting(manager: Manager) -> list[Record]:
    """The paused sandboxes that wait to be taken."""
    return [record for record in manager.store.records() if KEY in record.data]


def drain(manager: Manager, levels: tuple[str, ...]) -> list[str]:
    """Remove everything that is prepared at these levels. Returns a line per thing removed.

    Raises:
        SandboxError
    """
    removed = []
    if ZYGOTE in levels and local_warm.stop():
        removed.append("zygote")
    for record in waiting(manager):
        if record.spec.isolation in levels:
            manager.remove(record.id, force=True)
            removed.append(f"{record.spec.isolation} {record.name}")
    return removed
