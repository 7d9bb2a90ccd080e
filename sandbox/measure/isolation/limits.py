"""Try to exceed the limits of a sandbox, and read from the counters of the enforcing kernel what happened.

The limits are read back first. The stressor has a bound of its own, a quarter above the limit. The counters are
memory.failcnt, memory.oom_control and pids.events of cgroup v1 (admin-guide/cgroup-v1) or memory.events, memory.peak
and pids.events of v2 (admin-guide/cgroup-v2), in the guest if a guest enforces the limits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError
from sandbox.kernel import cgroup, procfs
from sandbox.measure.isolation import observed
from sandbox.measure.isolation.observed import DIED, Push, clean

if TYPE_CHECKING:
    from sandbox.isolation.base import ExecResult, Sandbox

BEYOND = 1.25
"""Amount that the stressor tries to reach, as a multiple of the limit."""
TIMEOUT = 60.0
"""Maximum seconds of one attempt; an emulated guest touches memory slowly."""
HOLD = 0.3
"""Seconds that the stressor holds what it got, so that it is sampled."""
HOLD_INSIDE = 3.0
"""The same if another command has to run inside to count."""
_SAMPLE = 0.005
_LOOK_AGAIN = 0.2
_STATE_PAUSE = 0.1
_LAST_WORDS = 2.0
"""Seconds that a command has to return after its sandbox has ended."""
_V2_FILES = ("memory.events", "memory.peak", "memory.max", "pids.events", "pids.peak", "pids.max")


@dataclass(frozen=True, slots=True)
class Reading:
    """Values of the counters at one moment; None for a counter that does not exist.

    Attributes:
        refusals: how often the limit was reached.
        peak: maximum that was charged.
        current: the amount charged now.
    """

    refusals: int | None = None
    peak: int | None = None
    current: int | None = None


class Group:
    """The host's cgroup of a process, for one controller."""

    def __init__(self, controller: str, folder: Path, *, v2: bool) -> None:
        self.controller = controller
        self.folder = folder
        self.v2 = v2

    @classmethod
    def of(cls, pid: int, controller: str) -> Group | None:
        """Find the group of a process; None if the host has no such controller or process (cgroups(7))."""
        v2 = controller in cgroup.hierarchy().v2_controllers
        try:
            folder = cgroup.places(pid).get("" if v2 else controller)
        except OSError:
            return None
        return None if folder is None else cls(controller, folder, v2=v2)

    def limit(self) -> int | None:
        """Return the limit in force; None if there is none."""
        names = {"memory": "memory.max" if self.v2 else "memory.limit_in_bytes", "pids": "pids.max"}
        return self._number(names[self.controller])

    def read(self) -> Reading:
        """Read the counters."""
        if self.controller == "pids":
            events = self._keyed("pids.events")
            return Reading(events.get("max"), self._number("pids.peak"), self._number("pids.current"))
        if self.v2:
            events = self._keyed("memory.events")
            return Reading(events.get("max"), self._number("memory.peak"), self._number("memory.current"))
        failures, kills = self._number("memory.failcnt"), self._keyed("memory.oom_control").get("oom_kill")
        refusals = None if failures is None and kills is None else (failures or 0) + (kills or 0)
        return Reading(refusals, self._number("memory.max_usage_in_bytes"), self._number("memory.usage_in_bytes"))

    def describe(self) -> str:
        """Return a description of the counters."""
        if self.controller == "pids":
            return "the host's cgroup: pids.events"
        return "the host's cgroup: " + ("memory.events" if self.v2 else "memory.failcnt and oom_kill")

    def _number(self, name: str) -> int | None:
        with suppress(OSError, ValueError):
            return int((self.folder / name).read_text(encoding="ascii"))
        return None

    def _keyed(self, name: str) -> dict[str, int]:
        with suppress(OSError):
            return procfs.keyed((self.folder / name).read_text(encoding="ascii"))
        return {}


class Meter:
    """Samples a group and the host's free memory during an attempt, as the group may not outlive it."""

    def __init__(self, group: Group | None) -> None:
        self._group = group
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before = group.read() if group else Reading()
        self.last = self.before
        self.highest: int | None = None
        self._free = available()
        self.sunk = 0

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self._take()
            if self._stop.wait(_SAMPLE):
                self._take()
                return

    def _take(self) -> None:
        self.sunk = max(self.sunk, self._free - available())
        if self._group is None:
            return
        now = self._group.read()
        # A group that is gone has no values; the last ones read are kept.
        self.last = Reading(*(new if new is not None else old for new, old in _pairs(now, self.last)))
        if now.current is not None:
            self.highest = max(self.highest or 0, now.current)

    @property
    def refusals(self) -> int | None:
        """Return how often the limit was reached during the attempt."""
        if self.last.refusals is None or self.before.refusals is None:
            return None
        return self.last.refusals - self.before.refusals

    @property
    def peak(self) -> int | None:
        """Return the maximum that was charged: the kernel's value, or the highest sample."""
        known = [value for value in (self.last.peak, self.highest) if value is not None]
        return max(known) if known else None


def _pairs(new: Reading, old: Reading) -> list[tuple[int | None, int | None]]:
    return [(new.refusals, old.refusals), (new.peak, old.peak), (new.current, old.current)]


def available() -> int:
    """Return MemAvailable of the host in bytes (proc_meminfo(5))."""
    return procfs.kibibytes(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable") or 0


def push_memory(sandbox: Sandbox, before: Callable[[], None] = lambda: None) -> Push:
    """Try to allocate a quarter more memory than the limit.

    Args:
        sandbox: the sandbox, which may not survive.
        before: called before the attempt, after the limits were read back.

    Raises:
        SandboxError: the limits cannot be read.
    """
    limit = sandbox.limits().memory
    return _push(sandbox, "memory", limit, before)


def push_pids(sandbox: Sandbox, before: Callable[[], None] = lambda: None) -> Push:
    """Try to create a quarter more processes than the limit; see `push_memory`.

    Raises:
        SandboxError: the limits cannot be read.
    """
    limit = sandbox.limits().pids
    return _push(sandbox, "pids", limit, before)


def _push(sandbox: Sandbox, controller: str, limit: int | None, before: Callable[[], None]) -> Push:
    asked = int((limit or 0) * BEYOND)
    if limit is None:
        return Push(None, asked, None, "not tried", None, "no limit was read back")
    group = _enforcer(sandbox, controller, limit)
    if group is None:
        return _push_inside(sandbox, controller, limit, asked)
    before()
    with Meter(group) as meter:
        got, ended = _attempt(sandbox, controller, asked, HOLD)
    return Push(
        limit=limit,
        asked=asked,
        got=got,
        ended=ended,
        refusals=meter.refusals,
        counter=group.describe(),
        peak=meter.peak,
        sunk=meter.sunk if controller == "memory" else None,
    )


def _push_inside(sandbox: Sandbox, controller: str, limit: int, asked: int) -> Push:
    """Make the attempt in a sandbox whose own kernel enforces the limit, and use that kernel's counters."""
    first = _guest(sandbox, controller)
    # Counting runs processes inside, so it is done only if nothing else counts them.
    looking = controller == "pids" and first.refusals is None
    most: int | None = None
    with Meter(None) as meter, ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(_attempt, sandbox, controller, asked, HOLD_INSIDE if looking else HOLD)
        while looking and not running.done():
            most = max(most or 0, _guest(sandbox, controller).current or 0) or None
            time.sleep(_LOOK_AGAIN)
        got, ended = running.result()
    last = _guest(sandbox, controller)
    refusals = None
    if last.refusals is not None and first.refusals is not None:
        refusals = last.refusals - first.refusals
    peaks = [value for value in (last.peak, most) if value is not None]
    return Push(
        limit=limit,
        asked=asked,
        got=got,
        ended=ended,
        refusals=refusals,
        counter=f"the kernel inside: {controller}.events"
        if refusals is not None
        else "the kernel inside: its processes",
        peak=max(peaks, default=None),
        sunk=meter.sunk if controller == "memory" else None,
    )


def _enforcer(sandbox: Sandbox, controller: str, limit: int) -> Group | None:
    """Find the host's group that has exactly this limit; None if something else enforces it."""
    pid = sandbox.state().pid
    group = Group.of(pid, controller) if pid is not None else None
    return group if group is not None and group.limit() == limit else None


def _guest(sandbox: Sandbox, controller: str) -> Reading:
    """Read the counters of a command's cgroup, and the number of processes, from the kernel inside."""
    try:
        output = sandbox.exec(observed.command("counters", {"files": _V2_FILES}), timeout=TIMEOUT, root=True).stdout
    except (SandboxError, TimeoutError):
        return Reading()
    for answer in observed.answers(output):
        found, processes = answer.get("counters"), answer.get("processes")
        if isinstance(found, dict) and type(processes) is int:
            numbers = {str(key): value for key, value in found.items() if type(value) is int}
            met = numbers.get(f"{controller}.events:max")
            if met is None and controller == "memory":
                met = numbers.get("oom_kill")  # for all memory of the kernel inside (/proc/vmstat)
            return Reading(met, numbers.get(f"{controller}.peak"), processes)
    return Reading()


def _attempt(sandbox: Sandbox, controller: str, asked: int, hold: float) -> tuple[int | None, str]:
    """Run the stressor. Returns the amount that it reports, and how it ended."""
    mode, unit = {"memory": ("memory", "bytes"), "pids": ("forks", "count")}[controller]
    outcome: list[ExecResult | Exception] = []

    def act() -> None:
        try:
            outcome.append(sandbox.exec(observed.command(mode, {unit: asked, "seconds": hold}), timeout=TIMEOUT))
        except (SandboxError, TimeoutError) as error:
            outcome.append(error)

    # In a thread, as an engine may not notice that the command ended with the whole sandbox (gVisor's does not).
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    dead_since = None
    while thread.is_alive():
        thread.join(_STATE_PAUSE)
        if dead_since is None and not sandbox.state().running:
            dead_since = time.monotonic()
        if dead_since is not None and time.monotonic() - dead_since > _LAST_WORDS:
            return None, DIED
    (result,) = outcome
    if isinstance(result, TimeoutError):
        return None, "no answer in time"
    if isinstance(result, Exception):
        if not sandbox.state().running:
            return None, DIED
        return None, clean(getattr(result, "message", str(result)), 60)
    got: int | None = None
    ended = "killed" if result.exit_code in (137, 9) else f"exit code {result.exit_code}"
    for answer in observed.answers(result.stdout):
        for key in ("held", "forked"):
            if type(answer.get(key)) is int:
                got = answer[key]
        if answer.get("refused"):
            ended = f"refused: {clean(str(answer['refused']), 20)}"
        elif answer.get("complete") or answer.get("forked") == asked:
            ended = "complete"
    return got, ended
