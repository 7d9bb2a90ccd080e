"""The steps of a sandbox's start that are the manager's own: staging, waiting for a reply, reading limits back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sandbox.errors import EngineError, LimitError, NotReadyError, SandboxError, SpecError
from sandbox.isolation.base import Isolation, Sandbox
from sandbox.network import readiness
from sandbox.phases import Phase, Timeline
from sandbox.spec import SandboxSpec
from sandbox.state.record import Record

if TYPE_CHECKING:
    from sandbox.request.application import Application

GUEST_SHARE = 4
"""A guest keeps its application's files in memory, twice while it unpacks them; this part of it may be theirs."""
_END_NOTED = 2.0
"""Seconds that an engine may take to note an end that already showed."""
_LAST_LINES, _LAST_BYTES = 100, 16384
"""How much of its output an error shows of a workload that did not come up."""


def stage(application: Application | None, record: Record, level: Isolation) -> None:
    """Copy the application's files to where the driver takes them from.

    Raises:
        SpecError, StoreError
    """
    from sandbox.request import staging  # most starts stage nothing

    if application is None:
        raise SpecError(f"{record.name} is of an application, and its directory was not named", "run it anew")
    limit, reason = staging.MAX_TOTAL, ""
    if not level.shares_kernel:
        limit = min(limit, record.spec.memory // GUEST_SHARE)
        reason = f", and a {level.name} holds them in its memory, of which they may take a quarter"
    staging.stage(application.directory, application.files, record.app_path, limit, reason)


def await_reply(sandbox: Sandbox, record: Record, port: int, deadline: float) -> None:
    """Return once a correct reply was served.

    Args:
        sandbox: was started.
        record: of the sandbox.
        port: TCP.
        deadline: a value of time.monotonic().

    Raises:
        NotReadyError: it ended, or no correct reply came in time; with the end of its output.
        EngineError: its keeper was killed.
    """

    def alive() -> bool:
        kept = sandbox.keeper
        if kept is not None and not kept.over():
            return True  # it would have said so; and this is asked many times a millisecond
        if kept is not None and kept.lost():
            raise EngineError(f"the keeper of {record.name} was killed: what it writes is lost from here on")
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
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        hint = "its output ends: " + "".join(c if c.isprintable() else "?" for c in lines[-1]) if lines else error.hint
        raise NotReadyError(error.message, hint, output) from None


def check_limits(spec: SandboxSpec, sandbox: Sandbox) -> None:
    """Read limits back and compare them with those asked for; a quota is rounded to a microsecond per period.

    A command that serves nothing may be over by now, and what held its limits gone with it; then they are compared as
    far as they can still be read.

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
    """Whether a command that serves nothing has ended. An engine notes that a moment after it shows."""
    if spec.port is not None:
        return False
    try:
        sandbox.wait(_END_NOTED)
    except TimeoutError:
        return False
    return True


def _last_output(sandbox: Sandbox) -> str:
    """The end of what it wrote; empty where that cannot be read."""
    with suppress(SandboxError):
        return b"".join(sandbox.logs(tail=_LAST_LINES))[-_LAST_BYTES:].decode("utf-8", "replace")
    return ""


class Clock:
    """Times phases by one monotonic clock of the host."""

    def __init__(self) -> None:
        self.timeline = Timeline()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a block; one that raises is not recorded."""
        begin = time.monotonic_ns()
        yield
        self.timeline.record(phase, begin, time.monotonic_ns())
