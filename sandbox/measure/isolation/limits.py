"""Pushes a throw-away sandbox against its limits, and has the counters of whatever enforces them say what happened.

The limits are read back before anything is tried. The antagonist has a bound of its own, a quarter above the limit.
Counters: memory.failcnt, memory.oom_control and pids.events of cgroup v1 (admin-guide/cgroup-v1), memory.events,
memory.peak and pids.events of v2 (admin-guide/cgroup-v2); the guest's own where a guest enforces them.
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
"""How far past the limit the antagonist tries to go."""
TIMEOUT = 60.0
"""Seconds for one attempt; an emulated guest touches memory slowly."""
HOLD = 0.3
"""Seconds that what was got is held, for the sampler to see it."""
HOLD_INSIDE = 3.0
"""The same where another command has to go inside and look."""
_SAMPLE = 0.005
_LOOK_AGAIN = 0.2
_STATE_PAUSE = 0.1
_LAST_WORDS = 2.0
"""Seconds that a command gets to return after its sandbox died."""
_V2_FILES = ("memory.events", "memory.peak", "memory.max", "pids.events", "pids.peak", "pids.max")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; None for what is not there.

    Attributes:
        refusals: how often the limit was met.
        peak: most ever charged.
        current: charged now.
    """

    refusals: int | None = None
    peak: int | None = None
    current: int | None = None


class Group:
    """The host's control group of a process, as far as one controller goes."""

    def __init__(self, controller: str, folder: Path, *, v2: bool) -> None:
        self.controller = controller
        self.folder = folder
        self.v2 = v2

    @classmethod
    def of(cls, pid: int, controller: str) -> Group | None:
        """The group of a process; None where the host has no such controller or process (cgroups(7))."""
        v2 = controller in cgroup.hierarchy().v2_controllers
        try:
            folder = cgroup.places(pid).get("" if v2 else controller)
        except OSError:
            return None
        return None if folder is None else cls(controller, folder, v2=v2)

    def limit(self) -> int | None:
        """The limit in force; None where there is none."""
        names = {"memory": "memory.max" if self.v2 else "memory.limit_in_bytes", "pids": "pids.max"}
        return self._number(names[self.controller])

    def read(self) -> Reading:
        """The counters now."""
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
        """Which counters these are."""
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
    """Samples a group and the host's free memory while an attempt runs, for the group may not outlive it."""

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
        # A group that is gone reads as nothing; what was last read of it stands.
        self.last = Reading(*(new if new is not None else old for new, old in _pairs(now, self.last)))
        if now.current is not None:
            self.highest = max(self.highest or 0, now.current)

    @property
    def refusals(self) -> int | None:
        """How often the limit was met meanwhile."""
        if self.last.refusals is None or self.before.refusals is None:
            return None
        return self.last.refusals - self.before.refusals

    @property
    def peak(self) -> int | None:
        """Most that was charged: the kernel's own maximum, or the highest sample."""
        known = [value for value in (self.last.peak, self.highest) if value is not None]
        return max(known) if known else None


def _pairs(new: Reading, old: Reading) -> list[tuple[int | None, int | None]]:
    return [(new.refusals, old.refusals), (new.peak, old.peak), (new.current, old.current)]


def available() -> int:
    """MemAvailable of the host in bytes (proc_meminfo(5))."""
    return procfs.kibibytes(Path("/proc/meminfo").read_text(encoding="ascii"), "MemAvailable") or 0


def push_memory(sandbox: Sandbox, before: Callable[[], None] = lambda: None) -> Push:
    """Try to take a quarter more memory than granted.

    Args:
        sandbox: a throw-away one; it may not survive.
        before: called after the limits were read back, before the attempt.

    Raises:
        SandboxError: the limits cannot be read.
    """
    limit = sandbox.limits().memory
    return _push(sandbox, "memory", limit, before)


def push_pids(sandbox: Sandbox, before: Callable[[], None] = lambda: None) -> Push:
    """Try to make a quarter more processes than granted; see `push_memory`.

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
    """The same where a kernel of the sandbox's own enforces the limit: its counters, and its list of processes."""
    first = _guest(sandbox, controller)
    # A look costs processes inside, so that it is taken only where nothing else counts them.
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
    """The host's group that has this very limit; None where something else enforces it."""
    pid = sandbox.state().pid
    group = Group.of(pid, controller) if pid is not None else None
    return group if group is not None and group.limit() == limit else None


def _guest(sandbox: Sandbox, controller: str) -> Reading:
    """The counters of the group that a command runs in, and the processes there, as a kernel inside has them."""
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
                met = numbers.get("oom_kill")  # of all memory that the kernel inside has (/proc/vmstat)
            return Reading(met, numbers.get(f"{controller}.peak"), processes)
    return Reading()


def _attempt(sandbox: Sandbox, controller: str, asked: int, hold: float) -> tuple[int | None, str]:
    """Run the antagonist; how far it says it came, and how it ended."""
    mode, unit = {"memory": ("memory", "bytes"), "pids": ("forks", "count")}[controller]
    outcome: list[ExecResult | Exception] = []

    def act() -> None:
        try:
            outcome.append(sandbox.exec(observed.command(mode, {unit: asked, "seconds": hold}), timeout=TIMEOUT))
        except (SandboxError, TimeoutError) as error:
            outcome.append(error)

    # A thread, for an engine may not notice that the command went down with the whole sandbox (gVisor's does).
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
