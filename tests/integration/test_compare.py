"""A comparison on real engines: it measures figures, writes readable files, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import results
from sandbox.results import PERCENTILES, PHASES, Document, Status

SANDBOX = str(Path(sys.executable).with_name("sandbox"))


def compare(folder: Path, *options: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    argv = [SANDBOX, "compare", "reactor", "-o", str(folder), *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)


def check_samples(document: Document, rounds: int) -> None:
    for info in document.levels:
        samples = [sample for sample in document.samples if sample.level == info.name]
        assert [sample.round for sample in samples] == list(range(rounds + 1))
        for sample in samples:
            assert sample.error is None
            assert tuple(sample.phases_s) == PHASES
            assert sample.startup_s is not None
            assert sum(sample.phases_s.values()) <= sample.startup_s * 1.0001
            assert sample.load is not None
            assert sample.load.requests > 0
            assert [sample.load.latency_s[name] for name in PERCENTILES] == sorted(sample.load.latency_s.values())
            assert sum(sample.load.errors.values()) == 0


@pytest.mark.level("process")
@pytest.mark.level("namespace")
def test_two_levels_are_measured_and_reported(tmp_path: Path) -> None:
    options = ("--isolation", "namespace,process", "--samples", "2", "--duration", "1", "--no-isolation-table")
    done = compare(tmp_path, *options, "--seed", "11", "--format", "json")
    assert done.returncode == 0, done.stderr
    document = results.load(tmp_path / "results.json")
    assert results.loads(done.stdout) == document
    assert document.status is Status.COMPLETE
    assert document.plan.seed == 11
    assert document.plan.baseline == "process"
    check_samples(document, rounds=2)
    assert "few-samples" in {caveat.code for caveat in document.warnings}
    page = (tmp_path / "report.html").read_text()
    assert "reactor at each isolation level" in page
    again = subprocess.run(
        [SANDBOX, "report", str(tmp_path / "results.json")], capture_output=True, text=True, check=True
    )
    assert "Startup to the first correct reply" in again.stdout


@pytest.mark.level("container")
def test_a_container_is_measured(tmp_path: Path) -> None:
    done = compare(tmp_path, "--isolation", "container", "--samples", "1", "--duration", "1", "--no-isolation-table")
    assert done.returncode == 0, done.stderr
    check_samples(results.load(tmp_path / "results.json"), rounds=1)


@pytest.mark.level("vm")
@pytest.mark.slow
def test_a_machine_is_measured_and_labelled_by_what_runs_it(tmp_path: Path) -> None:
    done = compare(tmp_path, "--isolation", "vm", "--samples", "1", "--duration", "1", "--no-isolation-table")
    assert done.returncode == 0, done.stderr
    document = results.load(tmp_path / "results.json")
    check_samples(document, rounds=1)
    info = document.info("vm")
    assert info.label == ("vm (TCG, emulated)" if info.emulated else "vm (KVM)")
    assert info.label in done.stdout
    assert info.label in (tmp_path / "report.html").read_text()
    assert document.samples[1].phases_s["boot"] > 0.01, "a machine has a kernel of its own to boot"


@pytest.mark.level("namespace")
def test_the_isolation_table_comes_with_it(tmp_path: Path) -> None:
    done = compare(tmp_path, "--isolation", "namespace", "--samples", "1", "--duration", "0")
    assert done.returncode == 0, done.stderr
    document = results.load(tmp_path / "results.json")
    assert document.isolation
    assert {check.level for check in document.isolation} == {"namespace"}
    assert "Isolation" in done.stdout
    assert all(sample.load is None for sample in document.samples)


@pytest.mark.level("namespace")
def test_an_interrupt_reports_what_was_measured_and_removes_the_sandbox(tmp_path: Path) -> None:
    argv = [SANDBOX, "compare", "reactor", "-o", str(tmp_path), "--isolation", "namespace", "--samples", "50"]
    process = subprocess.Popen([*argv, "--duration", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "results.json"
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and len(json.loads(path.read_text())["samples"]) >= 3):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    assert "INCOMPLETE: the run was interrupted" in out
    document = results.load(path)
    assert document.status is Status.INCOMPLETE
    assert len(document.samples) >= 3
    assert (tmp_path / "report.html").exists()


@pytest.mark.level("namespace")
def test_an_earlier_run_in_the_same_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("an earlier run")
    os.utime(tmp_path / "results.json", (1_700_000_000, 1_700_000_000))
    done = compare(tmp_path, "--isolation", "namespace", "--samples", "1", "--duration", "0", "--no-isolation-table")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results-20231114-221320.json").read_text() == "an earlier run"
    assert results.load(tmp_path / "results.json").status is Status.COMPLETE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "nonsense"], "there is no workload 'nonsense'"),
        (["compare", "reactor", "--isolation", "bunker"], "there is no isolation level 'bunker'"),
        (["compare", "reactor", "--samples", "0"], "0 is not in the range"),
        (["compare", "reactor", "--duration", "x"], "'x' is not a valid integer"),
        (["report", "/nonexistent/results.json"], "cannot be read"),
        (["report", "/dev/null"], "not a result document"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run([SANDBOX, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert done.returncode == 125
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
