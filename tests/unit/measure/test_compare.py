"""The course of a comparison: order, warm-up, failures, interruption. The sandboxes are scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import results
from sandbox.errors import EngineError, NotFoundError, NotReadyError, SpecError, UnavailableError
from sandbox.lifecycle import lab, start
from sandbox.measure import compare, host, isolation, load, vagrant
from sandbox.measure.compare import Comparison, Options
from sandbox.measure.summary import summarise
from sandbox.phases import ORDER, Timeline
from sandbox.request import resolve
from sandbox.results import IsolationCheck, LevelInfo, Load, Status, Verdict
from sandbox.spec import SandboxSpec
from sandbox.state.record import Record
from tests.unit.documents import comparison

LEVELS = ("process", "namespace", "vm")


class Scripted:
    """A replacement for the lifecycle; `act` decides what the n-th sandbox does."""

    def __init__(self, act: Callable[[str, int], None]) -> None:
        self.act = act
        self.started: list[str] = []
        self.alive = 0

    def make(self, workload: str, level: str, options: resolve.Options) -> Any:
        spec = SandboxSpec("a", workload, level, (), cpuset=options.cpuset, port=8080)
        return SimpleNamespace(spec=spec)

    @contextmanager
    def running(self, spec: Any, *, progress: Callable[[str], None]) -> Iterator[Any]:
        self.started.append(spec.isolation)
        progress("creating")
        self.alive += 1
        try:
            self.act(spec.isolation, len(self.started))
            line = Timeline()
            for index, phase in enumerate(ORDER):
                line.record(phase, index * 1_000_000, (index + 1) * 1_000_000)
            record = Record("0" * 12, spec, "198.18.2.1", timeline=line)
            record.accelerator = "tcg" if spec.isolation == "vm" else None
            stats = SimpleNamespace(memory=10 << 20)
            yield SimpleNamespace(record=record, sandbox=SimpleNamespace(stats=lambda: stats))
        finally:
            self.alive -= 1


class Silent:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def step(self, done: int, total: int, what: str, remaining: float | None) -> None:
        assert what
        assert remaining is None or remaining >= 0
        self.steps.append((done, total))

    def detail(self, what: str) -> None:
        assert what

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace all functions that would need the host."""
    monkeypatch.setattr(compare, "_level_info", lambda level: LevelInfo(level, level, False, True, None, None))
    monkeypatch.setattr(host, "caveats", lambda *_args, **_kwargs: [])
    monkeypatch.setattr(load, "fetch", lambda *_args: (200, b"hello\n"))
    figure = Load(1000, 1.0, 1000.0, 1, dict.fromkeys(results.PERCENTILES, 0.001), dict.fromkeys(load.ERRORS, 0))
    monkeypatch.setattr(load, "saturate", lambda *_args, **_kwargs: figure)


def nothing(level: str, number: int) -> None:
    """Let every sandbox work."""


def run(
    tmp_path: Path, act: Callable[[str, int], None], *, samples: int = 4, seed: int = 3, **more: bool
) -> tuple[Comparison, Scripted, Silent]:
    manager, observer = Scripted(act), Silent()
    options = Options("reactor", LEVELS, samples=samples, duration=1, seed=seed, **{"probe": False, **more})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "make", manager.make)
        patch.setattr(lab, "use", nullcontext)
        patch.setattr(start, "running", manager.running)
        patch.setattr(compare, "Store", lambda: SimpleNamespace(records=list))
        one = Comparison(options, tmp_path / "results.json", observer)
        one.run()
    assert manager.alive == 0, "no sandbox outlives the run"
    return one, manager, observer


@pytest.mark.usefixtures("measured")
class TestRun:
    def test_a_round_is_each_level_once_in_an_order_of_the_seed(self, tmp_path: Path) -> None:
        _, manager, _ = run(tmp_path, nothing, samples=6)
        rounds = [tuple(manager.started[index : index + 3]) for index in range(0, len(manager.started), 3)]
        assert len(rounds) == 7, "one to warm up"
        assert all(sorted(one) == sorted(LEVELS) for one in rounds)
        assert len(set(rounds)) > 1
        assert run(tmp_path, nothing, samples=6)[1].started == manager.started
        assert run(tmp_path, nothing, samples=6, seed=4)[1].started != manager.started

    def test_the_warm_up_is_kept_but_not_counted(self, tmp_path: Path) -> None:
        run(tmp_path, nothing)
        document = results.load(tmp_path / "results.json")
        assert document.status is Status.COMPLETE
        assert sum(sample.round == 0 for sample in document.samples) == 3
        assert [summary.attempted for summary in document.summary] == [4, 4, 4]

    def test_the_vm_is_labelled_by_what_ran_it(self, tmp_path: Path) -> None:
        run(tmp_path, nothing)
        info = results.load(tmp_path / "results.json").info("vm")
        assert (info.label, info.emulated) == ("vm (TCG, emulated)", True)

    def test_a_failure_is_counted_and_told_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        def act(level: str, number: int) -> None:
            if number == 5:
                raise NotReadyError("it did not answer")

        _, manager, observer = run(tmp_path, act)
        document = results.load(tmp_path / "results.json")
        failed = [summary for summary in document.summary if summary.failed]
        assert len(manager.started) == 15
        assert [(summary.failed, summary.attempted) for summary in failed] == [(1, 4)]
        assert any("it did not answer" in note for note in observer.notes)
        assert "failed" in {caveat.code for caveat in document.warnings}

    def test_three_failures_in_a_row_end_the_attempts(self, tmp_path: Path) -> None:
        def act(level: str, number: int) -> None:
            if level == "namespace":
                raise EngineError("broken")

        _, manager, observer = run(tmp_path, act, samples=9)
        assert manager.started.count("namespace") == 3
        assert manager.started.count("process") == 10
        assert "namespace: 3 failures in a row; it is not tried again" in observer.notes

    def test_a_level_that_turns_out_unavailable_becomes_a_row_with_its_reason(self, tmp_path: Path) -> None:
        def act(level: str, number: int) -> None:
            if level == "vm":
                raise UnavailableError("no libvirt", "sandbox doctor --fix")

        _, manager, _ = run(tmp_path, act)
        info = results.load(tmp_path / "results.json").info("vm")
        assert (info.available, info.reason, info.remedy) == (False, "no libvirt", "sandbox doctor --fix")
        assert manager.started.count("vm") == 1

    def test_an_interrupt_keeps_what_was_measured(self, tmp_path: Path) -> None:
        def act(level: str, number: int) -> None:
            if number == 8:
                raise KeyboardInterrupt

        one, _, _ = run(tmp_path, act)
        document = results.load(tmp_path / "results.json")
        assert one.interrupt is not None
        assert document.status is Status.INCOMPLETE
        assert len(document.samples) == 7
        assert document.finished is not None
        assert document.summary

    def test_a_crash_keeps_what_was_measured_too(self, tmp_path: Path) -> None:
        def act(level: str, number: int) -> None:
            if number == 8:
                raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            run(tmp_path, act)
        document = results.load(tmp_path / "results.json")
        assert (document.status, len(document.samples)) == (Status.INCOMPLETE, 7)

    def test_the_file_is_complete_after_every_sample(self, tmp_path: Path) -> None:
        seen: list[int] = []

        def act(level: str, number: int) -> None:
            document = results.load(tmp_path / "results.json")
            assert document.status is Status.INCOMPLETE
            seen.append(len(document.samples))

        run(tmp_path, act, samples=2)
        assert seen == list(range(9))

    def test_another_page_is_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pages = iter([b"hello\n"] * 4 + [b"other\n"] + [b"hello\n"] * 20)
        monkeypatch.setattr(load, "fetch", lambda *_args: (200, next(pages)))
        run(tmp_path, nothing)
        errors = [sample.error for sample in results.load(tmp_path / "results.json").samples if sample.error]
        assert errors == ["/ was answered with different bytes than by the first sandbox"]

    def test_the_isolation_table_is_filled_by_the_probes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def examine(levels: list[str], workload: str, progress: object) -> list[IsolationCheck]:
            return [IsolationCheck(level, "kernel", Verdict.SHARED, {"inside": "x"}, "y") for level in levels]

        monkeypatch.setattr(isolation, "examine", examine)
        run(tmp_path, nothing, probe=True)
        assert [row.level for row in results.load(tmp_path / "results.json").isolation] == list(LEVELS)


@pytest.mark.usefixtures("measured")
class TestVagrant:
    """Vagrant machines have a row beside the levels."""

    @pytest.fixture
    def machines(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Record the actions on machines, including the end of the project."""
        done: list[str] = []

        @contextmanager
        def machine() -> Iterator[vagrant.Machine]:
            done.append("up")
            try:
                yield vagrant.Machine("198.19.121.44", 8080, 15.0, emulated=True)
            finally:
                done.append("destroy")

        @contextmanager
        def project(*_: object) -> Iterator[Any]:
            try:
                yield SimpleNamespace(machine=machine)
            finally:
                done.append("end")

        monkeypatch.setattr(vagrant, "project", project)
        monkeypatch.setattr(load, "fetch", lambda *_args, **_kwargs: (200, b"hello\n"))
        return done

    def test_it_has_a_row_with_figures_and_no_verdicts(
        self, tmp_path: Path, machines: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []

        def examine(levels: list[str], *_: object) -> list[IsolationCheck]:
            seen.append(levels)
            return []

        monkeypatch.setattr(isolation, "examine", examine)
        run(tmp_path, nothing, with_vagrant=True, probe=True)
        document = results.load(tmp_path / "results.json")
        assert machines == ["up", "destroy"] * 5 + ["end"]
        assert seen == [list(LEVELS)]
        assert [info.name for info in document.levels] == [*LEVELS, "vagrant"]
        assert (document.info("vagrant").label, document.plan.baseline) == ("vagrant (TCG, emulated)", "process")
        figures = document.summary_of("vagrant")
        assert figures is not None
        assert (figures.attempted, figures.failed, figures.memory_bytes) == (4, 0, None)
        assert figures.startup_s is not None
        assert figures.startup_s.median == 15.0
        assert figures.requests_per_s is not None
        assert "vagrant" in {caveat.code for caveat in document.warnings}

    def test_it_is_left_out_unless_asked_for(self, tmp_path: Path, machines: list[str]) -> None:
        run(tmp_path, nothing)
        document = results.load(tmp_path / "results.json")
        assert machines == []
        assert [info.name for info in document.levels] == list(LEVELS)
        assert "vagrant" not in {caveat.code for caveat in document.warnings}

    def test_its_failure_is_a_samples(
        self, tmp_path: Path, machines: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, "fetch", lambda *_args, **how: (500 if how else 200, b"hello\n"))
        run(tmp_path, nothing, with_vagrant=True)
        document = results.load(tmp_path / "results.json")
        errors = [sample.error for sample in document.samples if sample.level == "vagrant"]
        assert errors == ["/ was answered with status 500 instead of 200"] * compare.GIVE_UP
        assert machines == ["up", "destroy"] * compare.GIVE_UP + ["end"]

    def test_an_interrupt_ends_the_project(self, tmp_path: Path, machines: list[str]) -> None:
        def act(level: str, number: int) -> None:
            raise KeyboardInterrupt

        one, _, _ = run(tmp_path, act, with_vagrant=True)
        assert one.interrupt is not None
        assert machines[-1] == "end"

    def test_where_it_cannot_be_done_its_row_says_why(
        self, tmp_path: Path, machines: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = LevelInfo("vagrant", "vagrant", False, False, "no dnsmasq", "install it")
        known = compare._level_info
        monkeypatch.setattr(compare, "_level_info", lambda level: row if level == "vagrant" else known(level))
        run(tmp_path, nothing, with_vagrant=True)
        assert machines == []
        assert results.load(tmp_path / "results.json").info("vagrant") == row


def test_levels_are_parsed_in_the_order_of_their_walls() -> None:
    assert compare.parse_levels("vm, process") == ("process", "vm")
    assert len(compare.parse_levels(None)) == 5
    for text in ("bunker", "", ","):
        with pytest.raises(NotFoundError, match="there is no isolation level"):
            compare.parse_levels(text)


def test_an_unknown_workload_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    options = Options("nonsense", LEVELS, samples=1, duration=1, seed=1)
    one = Comparison(options, tmp_path / "results.json", Silent())
    with pytest.raises(NotFoundError):
        one.check()
    assert not list(tmp_path.iterdir())


def test_vagrant_serves_no_other_workload(tmp_path: Path) -> None:
    options = Options("coroutine", LEVELS, samples=1, duration=1, seed=1, with_vagrant=True)
    one = Comparison(options, tmp_path / "results.json", Silent())
    with pytest.raises(SpecError, match="serves reactor, not coroutine"):
        one.check()


def test_a_failed_sample_is_in_no_figure() -> None:
    document = comparison(samples=3, failing=("vm",))
    sound = comparison(samples=3)
    figure = next(one for one in summarise(document) if one.level == "vm")
    assert figure.startup_s is not None
    assert figure.startup_s.n == 2
    assert (figure.attempted, figure.failed) == (3, 1)
    assert next(one for one in summarise(sound) if one.level == "vm").failed == 0


def test_the_baselines_ratio_is_one() -> None:
    figure = next(one for one in summarise(comparison()) if one.level == "process")
    assert figure.startup_ratio is not None
    assert (figure.startup_ratio.low, figure.startup_ratio.median, figure.startup_ratio.high) == (1, 1, 1)
