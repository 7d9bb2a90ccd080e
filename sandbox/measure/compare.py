"""Compare levels: start fresh sandboxes of every level, interleaved, and time, load and remove each.

A round has each level once, in an order shuffled by the plan's seed, so that drift on the host affects all levels
alike. Round 0 is a warm-up (it builds images, connects to engines and fills caches) and is not counted. The lab network
is kept between samples, as its creation is not part of any sandbox's startup. The document is saved after every sample.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import sandbox
from sandbox import host as capability
from sandbox import isolation, workloads
from sandbox.errors import EngineError, SandboxError, SpecError, UnavailableError
from sandbox.lifecycle import lab, start
from sandbox.lifecycle.find import Running
from sandbox.measure import host, load, stats, summary, vagrant
from sandbox.request import resolve
from sandbox.results import Document, LevelInfo, Load, Plan, Sample, Status, save
from sandbox.spec import DEFAULT_PORT, SandboxSpec
from sandbox.state.store import Store

PAGE = "/"
GIVE_UP = 3
"""Number of consecutive failures after which a level is not tried again."""
WARM_UP_SECONDS = 1


class Observer(Protocol):
    """Receives the progress of a run."""

    def step(self, done: int, total: int, what: str, remaining: float | None) -> None:
        """Report that a sample begins; `remaining` is the estimated time to the end in seconds, None if unknown."""

    def detail(self, what: str) -> None:
        """Report the current action within a sample."""

    def note(self, text: str) -> None:
        """Report a lasting fact, such as a failed sample or an unavailable level."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a comparison.

    Attributes:
        workload: name of the workload.
        levels: the levels, in the order of the report.
        samples: number of counted sandboxes per level.
        duration: seconds of load on each sandbox; 0 for none.
        seed: seed of the order within rounds.
        probe: whether to examine isolation too.
        with_vagrant: whether to measure Vagrant machines too.
    """

    workload: str
    levels: tuple[str, ...]
    samples: int
    duration: int
    seed: int
    probe: bool = True
    with_vagrant: bool = False

    @property
    def rows(self) -> tuple[str, ...]:
        """The levels, followed by Vagrant if it was requested."""
        return (*self.levels, vagrant.NAME) if self.with_vagrant else self.levels


@dataclass(slots=True)
class Comparison:
    """One run of a comparison. `run` is called once.

    Attributes:
        options: the options.
        path: path of the document, which is saved after every sample.
        observer: receives the progress.
        interrupt: the KeyboardInterrupt that ended the run early, for the caller to raise again; else None.
    """

    options: Options
    path: Path
    observer: Observer
    interrupt: KeyboardInterrupt | None = field(init=False, default=None)
    _document: Document = field(init=False)
    _cpus: host.CpuPlan = field(init=False)
    _page: bytes | None = field(init=False, default=None)
    _failures: Counter[str] = field(init=False, default_factory=Counter)
    _pace: dict[str, list[float]] = field(init=False, default_factory=dict)
    _vagrant: vagrant.Project | None = field(init=False, default=None)

    def check(self) -> None:
        """Check that the comparison can run, before anything is created.

        Raises:
            NotFoundError: there is no such workload.
            SpecError: Vagrant machines do not serve this workload.
            UnavailableError: not root, or no load generator.
        """
        workloads.argv(self.options.workload, host="0.0.0.0", port=DEFAULT_PORT)  # noqa: S104 - nothing listens here
        if self.options.with_vagrant:
            vagrant.check(self.options.workload)
        if os.geteuid() != 0:
            raise UnavailableError("sandboxes need root: namespaces, cgroups and the lab network", "run it with sudo")
        if self.options.duration:
            load.generator()

    def run(self) -> Document:
        """Measure. Returns the document, whose status is INCOMPLETE after a KeyboardInterrupt.

        Raises:
            SandboxError: wrong options or a full disk. A failed sample is recorded, and does not raise.
        """
        self._document = self._begin()
        self._save()
        try:
            with lab.use(), ExitStack() as undo:
                if self.options.with_vagrant and self._document.info(vagrant.NAME).available:
                    self._vagrant = undo.enter_context(vagrant.project(self._cpus.server, self.observer.detail))
                self._rounds()
                self._examine()
            self._document.status = Status.COMPLETE
        except KeyboardInterrupt as interrupt:
            self.interrupt = interrupt
        finally:
            self._finish()
        return self._document

    def _begin(self) -> Document:
        options = self.options
        self._cpus = host.cpu_plan()
        specs = [self._spec(level) for level in options.levels]
        self.observer.detail("examining this host")
        levels = [_level_info(level) for level in options.rows]
        usable = [info.name for info in levels if info.available]
        for info in levels:
            if not info.available:
                self.observer.note(f"{info.label}: not available on this host: {info.reason}")
        particulars = host.describe()
        caveats = host.caveats(particulars, samples=options.samples, few=stats.FEW_SAMPLES, tenants=self._tenants())
        if self._cpus.caveat is not None:
            caveats.append(self._cpus.caveat)
        if vagrant.NAME in usable:
            caveats.append(vagrant.CAVEAT)
        return Document(
            sandbox_version=sandbox.__version__,
            status=Status.INCOMPLETE,
            started=_now(),
            finished=None,
            plan=Plan(
                workload=options.workload,
                levels=list(options.rows),
                baseline=_baseline(usable or list(options.levels)),
                samples=options.samples,
                duration_s=options.duration,
                connections=load.CONNECTIONS,
                path=PAGE,
                seed=options.seed,
                server_cpus=str(self._cpus.server),
                generator_cpus=str(self._cpus.generator),
                cpus=specs[0].cpus,
                memory_bytes=specs[0].memory,
                pids_limit=specs[0].pids_limit,
            ),
            host=particulars,
            levels=levels,
            warnings=caveats,
        )

    def _tenants(self) -> int:
        """Count the sandboxes that run already; one whose process is not on this host is taken to run."""
        records = Store().records()
        return sum(record.process is None or record.process.alive() for record in records)

    def _spec(self, level: str) -> SandboxSpec:
        return resolve.make(self.options.workload, level, resolve.Options(cpuset=str(self._cpus.server))).spec

    def _rounds(self) -> None:
        # Not for secrets: the same seed must give the same order again.
        order = random.Random(self.options.seed)  # noqa: S311
        for number in range(self.options.samples + 1):
            levels = list(self.options.rows)
            order.shuffle(levels)
            for position, level in enumerate(levels):
                if self._worth_trying(level):
                    self._step(level, number)
                    self._add(self._sample(level, number, position))
            self._document.summary = summary.summarise(self._document)
            self._save()

    def _worth_trying(self, level: str) -> bool:
        return self._document.info(level).available and self._failures[level] < GIVE_UP

    def _add(self, sample: Sample) -> None:
        self._document.samples.append(sample)
        self._save()
        if sample.error is None:
            self._failures[sample.level] = 0
            return
        self._failures[sample.level] += 1
        label = self._document.info(sample.level).label
        self.observer.note(f"{label}, {_round_name(sample.round)}: failed: {sample.error}")
        if self._failures[sample.level] == GIVE_UP:
            self.observer.note(f"{label}: {GIVE_UP} failures in a row; it is not tried again")

    def _sample(self, level: str, number: int, position: int) -> Sample:
        """Create, measure and remove one fresh sandbox."""
        started, begin, before = _now(), monotonic(), host.CpuTimes.now()
        observed = _Observed()
        error: str | None = None
        try:
            if self._vagrant is not None and level == vagrant.NAME:
                with self._vagrant.machine() as machine:
                    self._observe_machine(machine, observed, warm_up=number == summary.WARM_UP)
            else:
                with start.running(self._spec(level), progress=self.observer.detail) as running:
                    self._observe(running, observed, warm_up=number == summary.WARM_UP)
        except UnavailableError as failure:
            error = str(failure)
            self._withdraw(level, failure)
        except (SandboxError, OSError) as failure:
            error = str(failure)
        self._pace.setdefault(level, []).append(monotonic() - begin)
        return Sample(
            level=level,
            round=number,
            position=position,
            started=started,
            phases_s=observed.phases,
            startup_s=observed.startup,
            load=observed.load,
            memory_bytes=observed.memory,
            steal_share=host.CpuTimes.now().steal_since(before),
            error=error,
        )

    def _observe(self, running: Running, observed: _Observed, *, warm_up: bool) -> None:
        timeline = running.record.timeline
        observed.phases, observed.startup = timeline.durations(), timeline.total()
        self._label(running)
        address, port = running.record.address, _port(running)
        self._check_page(*load.fetch(address, port, PAGE))
        self._load(observed, f"http://{address}:{port}{PAGE}", warm_up=warm_up)
        observed.memory = running.sandbox.stats().memory

    def _observe_machine(self, machine: vagrant.Machine, observed: _Observed, *, warm_up: bool) -> None:
        observed.startup = machine.startup
        self._replace(vagrant.NAME, vagrant.labelled(emulated=machine.emulated))
        self._check_page(*load.fetch(machine.address, machine.port, PAGE, connect=load.host_socket))
        self._load(observed, f"http://{machine.address}:{machine.port}{PAGE}", warm_up=warm_up, command=list)

    def _load(self, observed: _Observed, url: str, *, warm_up: bool, **how: Any) -> None:
        if not self.options.duration:
            return
        seconds = WARM_UP_SECONDS if warm_up else self.options.duration
        self.observer.detail(f"load for {seconds} s")
        observed.load = load.saturate(
            url, duration=seconds, connections=load.CONNECTIONS, cpu=self._cpus.generator, **how
        )

    def _check_page(self, status: int, body: bytes) -> None:
        """Check that every level does the same work, by comparing the bytes of the reply."""
        if status != 200:
            raise EngineError(f"{PAGE} was answered with status {status} instead of 200")
        if self._page is None:
            self._page = body
        elif body != self._page:
            raise EngineError(f"{PAGE} was answered with different bytes than by the first sandbox")

    def _label(self, running: Running) -> None:
        """Label a VM's row by its accelerator, as reported for this sandbox, in place of the expected one."""
        accelerator = running.record.accelerator
        if accelerator is not None:
            level = running.record.spec.isolation
            self._replace(level, _machine_info(level, emulated=accelerator == "tcg"))

    def _withdraw(self, level: str, failure: UnavailableError) -> None:
        """Mark a level as unavailable, with the reason, after a sample has shown it."""
        info = _unavailable(level, failure.message, failure.hint)
        self._replace(level, info)
        self.observer.note(f"{info.label}: not available on this host: {failure.message}")

    def _replace(self, level: str, info: LevelInfo) -> None:
        names = [known.name for known in self._document.levels]
        self._document.levels[names.index(level)] = info

    def _examine(self) -> None:
        if not self.options.probe:
            return
        from sandbox.measure.isolation import examine

        levels = [name for name in self.options.levels if self._worth_trying(name)]
        total = self._total()
        self.observer.step(total - 1, total, "isolation", None)
        self._document.isolation = examine(levels, self.options.workload, self.observer.detail)
        self._save()

    def _step(self, level: str, number: int) -> None:
        what = f"{self._document.info(level).label}, {_round_name(number)}"
        if number:
            what += f" of {self.options.samples}"
        self.observer.step(len(self._document.samples), self._total(), what, self._remaining())

    def _total(self) -> int:
        usable = sum(info.available for info in self._document.levels)
        return usable * (self.options.samples + 1) + (1 if self.options.probe else 0)

    def _remaining(self) -> float | None:
        """Estimate the remaining seconds by the median time of each level's samples; None until every level has one."""
        usable = [info.name for info in self._document.levels if self._worth_trying(info.name)]
        left = 0.0
        for level in usable:
            paces = self._pace.get(level, [])[1:]
            if not paces:
                return None
            left += stats.median(paces) * (self.options.samples - len(paces))
        return left

    def _save(self) -> None:
        save(self._document, self.path)

    def _finish(self) -> None:
        document = self._document
        document.finished = _now()
        document.summary = summary.summarise(document)
        document.warnings += summary.caveats(document)
        document.host.images.update(host.image_digests())  # the first run on a host builds images
        self._save()


@dataclass(slots=True)
class _Observed:
    """The results of a sample so far; they are kept if a later step fails."""

    phases: dict[str, float] = field(default_factory=dict)
    startup: float | None = None
    load: Load | None = None
    memory: int | None = None


def parse_levels(text: str | None) -> tuple[str, ...]:
    """Parse a list of levels such as "process,vm", ordered from the weakest isolation on; None means all levels.

    Raises:
        NotFoundError: one of the levels does not exist.
    """
    if text is None:
        return tuple(isolation.LEVELS)
    asked = {part.strip() for part in text.split(",") if part.strip()}
    for name in sorted(asked - set(isolation.LEVELS)) or ([] if asked else [""]):
        isolation.driver(name)  # raises if there is no such level, and names all levels
    return tuple(level for level in isolation.LEVELS if level in asked)


def _level_info(level: str) -> LevelInfo:
    if level == vagrant.NAME:
        return vagrant.info()
    missing = list(isolation.driver(level).missing())
    if missing:
        return _unavailable(level, "; ".join(lack.reason for lack in missing), missing[0].remedy)
    if not isolation.driver(level).features.machine:
        return LevelInfo(level, level, emulated=False, available=True, reason=None, remedy=None)
    return _machine_info(level, emulated=not capability.kvm_works())


def _machine_info(level: str, *, emulated: bool) -> LevelInfo:
    label = f"{level} (TCG, emulated)" if emulated else f"{level} (KVM)"
    return LevelInfo(level, label, emulated=emulated, available=True, reason=None, remedy=None)


def _unavailable(level: str, reason: str, remedy: str | None) -> LevelInfo:
    return LevelInfo(level, level, emulated=False, available=False, reason=reason, remedy=remedy)


def _baseline(usable: Sequence[str]) -> str:
    return min(usable, key=[*isolation.LEVELS, vagrant.NAME].index)  # the weakest isolation


def _round_name(number: int) -> str:
    return f"sample {number}" if number else "warm-up"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _port(running: Running) -> int:
    """Return the port on which a sandbox serves.

    Raises:
        SpecError: it has no known port, so there is nothing to measure.
    """
    port = running.record.spec.port
    if port is None:
        raise SpecError(f"{running.record.name} has no known port", "compare can only measure servers")
    return port
