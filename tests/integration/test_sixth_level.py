"""A level is one package and one line in the table: `tests/sixth` is served by every command and by the contract."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import results
from sandbox.results import Status

ROOT = Path(__file__).resolve().parents[2]
LEVEL = "sixth"
"""As `tests.sixth` has it, which is not imported here: that would register it for all tests of this run."""
NAME = "sixth-1"

pytestmark = pytest.mark.level("namespace")


def python(*argv: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def sandbox(*argv: str) -> str:
    done = python("-m", "tests.sixth", *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def running() -> Iterator[str]:
    sandbox("run", "-d", "--isolation", LEVEL, "--name", NAME, "--memory", "64m", "reactor")
    yield NAME
    sandbox("rm", "-f", NAME)


@pytest.mark.parametrize(("tests", "least"), [("lifecycle", 17), ("network", 5), ("publish", 5), ("verbs", 25)])
def test_the_contract_holds(tests: str, least: int) -> None:
    plugins = ("-p", "tests.sixth", "-p", "no:cacheprovider")
    done = python("-m", "pytest", *plugins, f"tests/contract/test_{tests}.py", "-k", LEVEL)
    assert done.returncode == 0, done.stdout
    passed = re.search(rf"{LEVEL}: (\d+) passed$", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= least


def test_every_command_shows_it(running: str) -> None:
    (row,) = [line.split() for line in sandbox("ps").splitlines() if running in line]
    assert row[1:5] == [running, "reactor", LEVEL, "up"]
    (one,) = [entry for entry in json.loads(sandbox("ps", "--format", "json")) if entry["name"] == running]
    assert (one["isolation"], one["running"], one["accelerator"]) == (LEVEL, True, None)
    (found,) = json.loads(sandbox("inspect", running))
    assert found["isolation"] == LEVEL
    assert found["resources"]["level"]["word"] == f"word of {running}", "the level's own handle came back from the disk"
    assert found["effective_error"] is None
    assert not [fact for fact in found["settings"] if fact["differs"]]
    assert f"word of {running}" in sandbox("inspect", "--format", "table", running)
    (usage,) = json.loads(sandbox("stats", "--no-stream", "--format", "json", running))
    assert usage["memory_percent"] is not None
    levels = {entry["level"]: entry for entry in json.loads(sandbox("doctor", "--format", "json"))["levels"]}
    assert levels[LEVEL]["available"]
    assert sandbox("exec", running, "echo", "hello") == "hello\n"
    sandbox("pause", running)
    assert "(paused)" in sandbox("ps")
    sandbox("unpause", running)
    sandbox("stop", running)
    assert "exited" in sandbox("ps", "-a")


def test_it_is_unknown_without_the_line(running: str) -> None:
    """A command without the line leaves it alone, and says so; one with it prunes it once it has ended."""
    done = python("-m", "sandbox", "prune")
    assert f"sandbox {running} has a level that this version of sandbox does not have" in done.stderr
    refused = python("-m", "sandbox", "stop", running)
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
    assert running not in sandbox("prune")
    sandbox("kill", running)
    assert f"sandbox {running} ({LEVEL}" in sandbox("prune")


def test_it_is_compared(tmp_path: Path) -> None:
    sandbox(
        "compare",
        "reactor",
        "--isolation",
        f"process,{LEVEL}",
        "--samples",
        "2",
        "--duration",
        "0",
        "-o",
        str(tmp_path),
    )
    document = results.load(tmp_path / "results.json")
    assert document.status is Status.COMPLETE
    assert [(info.name, info.label, info.available) for info in document.levels] == [
        ("process", "process", True),
        (LEVEL, LEVEL, True),
    ]
    assert document.plan.baseline == "process"
    assert {sample.error for sample in document.samples} == {None}
    checks = {row.check: row.verdict for row in document.isolation if row.level == LEVEL}
    assert checks["files"] == "ISOLATED"
    assert LEVEL in (tmp_path / "report.html").read_text(encoding="utf-8")
