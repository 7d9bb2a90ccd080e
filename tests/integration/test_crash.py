"""Killed at any failpoint, a command leaves nothing that `prune` does not find; interrupted, it leaves nothing at all.

Which failpoints a command passes at a level is found by a run that writes them down, so that a new one is tested
without being listed here.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox.errors import NotFoundError
from sandbox.failpoints import Failpoint
from sandbox.isolation import LEVELS
from sandbox.request import resolve as request
from sandbox.state.store import Store
from tests import leaks
from tests.conftest import missing_for
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
NAME = f"dying-{os.getpid()}"
CHEAP = ("process", "namespace", "container")
"""Levels at which a sandbox is cheap enough to die at every failpoint, on the way in and on the way out."""
DEATH = 3.0
"""Seconds in which the kernel drops what a killed command held, and in which its keeper removes a sandbox."""
ALL_LEVELS = [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS]


class Pass(NamedTuple):
    """One passing of a failpoint: which one, and for which time, from 0."""

    failpoint: Failpoint
    which: int

    def __str__(self) -> str:
        return f"{self.failpoint.value} {self.failpoint.name}" + (f" ({self.which + 1})" if self.which else "")


def sandbox(plan: dict[str, Any], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.dying", json.dumps(plan), *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def die(at: Pass, signals: Sequence[str], *command: str) -> subprocess.CompletedProcess[str]:
    return sandbox({"at": [at.failpoint.value, at.which], "signals": list(signals)}, *command)


PORT = 18099
APPLICATION = """
command = ["/bin/sh", "-c", "exec python3 -m http.server 8080"]
port = 8080
"""


@cache
def application() -> str:
    """A directory with an application that serves its own files."""
    directory = Path(tempfile.mkdtemp(prefix="sandbox-crash-"))
    (directory / "sandbox.toml").write_text(APPLICATION)
    (directory / "index.html").write_text("hello")
    return str(directory)


@pytest.fixture(scope="module", autouse=True)
def no_application_left() -> Iterator[None]:
    yield
    if application.cache_info().currsize:
        shutil.rmtree(application())


def run_command(level: str) -> tuple[str, ...]:
    """A workload; at one level an application with files and a published port instead, which add failpoints."""
    if level != "namespace":
        return ("run", "-d", "reactor", "--isolation", level, "--name", NAME)
    return ("run", "-d", application(), "--isolation", level, "--name", NAME, "-p", f"{PORT}:8080")


STOP = ("stop", NAME)
REMOVE = ("rm", "-f", NAME)


def start(level: str) -> Running:
    """What `run_command` runs, by this process."""
    manager = Manager()
    if level != "namespace":
        return manager.run(manager.make_spec("reactor", level, name=NAME))
    wanted = request.make(application(), level, request.Options(name=NAME, publish=(f"{PORT}:8080",)))
    return manager.run(wanted.spec, application=wanted.application)


def recording(*command: str) -> list[Pass]:
    """What a command passes, in order."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        done = sandbox({"log": str(log)}, *command)
        assert done.returncode == 0, done.stderr
        numbers = [int(line) for line in log.read_text().split()]
    seen: Counter[int] = Counter()
    passes = []
    for number in numbers:
        passes.append(Pass(Failpoint(number), seen[number]))
        seen[number] += 1
    return passes


@cache
def recorded(level: str, what: str) -> tuple[Pass, ...]:
    """What `run`, `stop` or `rm` pass at a level; nothing is left of it."""
    if what == "run":
        passes = recording(*run_command(level))
        Manager().remove(NAME, force=True)
        return tuple(passes)
    start(level)
    try:
        return tuple(recording(*(STOP if what == "stop" else REMOVE)))
    finally:
        if what == "stop":
            Manager().remove(NAME, force=True)


def added(level: str, what: str) -> list[Pass]:
    """Of those, what the level's driver adds to what every level passes."""
    common = {one.failpoint for one in recorded("namespace", what)}
    return [one for one in recorded(level, what) if one.failpoint not in common]


def served(running: Running) -> bool:
    with urllib.request.urlopen(str(running.url), timeout=10) as reply:
        return bool(reply.status == 200)


@pytest.fixture(scope="module")
def bystander() -> Iterator[Running]:
    """Another sandbox, which lives through all of it, untouched."""
    manager = Manager()
    before = leaks.snapshot()
    with manager.running(manager.make_spec("reactor", "namespace", name="bystander")) as running:
        if not missing_for("container"):
            # Docker's side of the lab stays as long as the lab does: made now, it is not counted with a test's own.
            with manager.running(manager.make_spec("reactor", "container")):
                pass
        yield running
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


def others() -> set[str]:
    return {one.record.name for one in Manager().everything()}


def prune_and_count(before: leaks.Snapshot, bystander: Running, names: set[str], *, may_live: bool) -> None:
    """Prune, and find nothing new on the host, and the bystander as it was.

    Args:
        before: what there was.
        bystander: must serve, from the same process.
        names: sandboxes that there were.
        may_live: a sandbox that is sound may have survived; then it must serve, and go when asked to.
    """
    manager = Manager()
    manager.prune()
    deadline = time.monotonic() + DEATH
    while not may_live and others() - names and time.monotonic() < deadline:
        time.sleep(0.05)
        manager.prune()
    for name in others() - names:
        assert may_live, f"{name} survived prune"
        running = manager.get(name)
        assert running.sandbox.state().running
        assert served(running)
        manager.remove(name, force=True)
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"
    assert manager.get(bystander.record.id).record == bystander.record
    assert bystander.sandbox.state().running
    assert served(bystander)


def each(passes: Sequence[Pass], act: Callable[[Pass], None]) -> None:
    """Try every one, and tell of all that failed, by name; one failure must not hide the others."""
    assert passes
    failures = []
    for one in passes:
        try:
            act(one)
        except Exception as error:
            failures.append(f"at {one}: {type(error).__name__}: {error}")
            Manager().prune()
            if NAME in others():
                Manager().remove(NAME, force=True)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "level", [pytest.param(level, marks=pytest.mark.level(level)) for level in ("namespace", "container")]
)
def test_the_lab_goes_with_the_last_one_whoever_dies(level: str) -> None:
    """Without a bystander, so it stands first: what all share is taken down as well, half of it before the kill."""
    before = leaks.snapshot()
    assert not Store().used_addresses(), "this test needs the lab network for itself"
    start(level)
    passes = [one for one in recording(*REMOVE) if one.failpoint >= Failpoint.STATE_REMOVED]
    assert {Failpoint.SHARED_REMOVED, Failpoint.LAB_REMOVED} <= {one.failpoint for one in passes}

    def act(at: Pass) -> None:
        start(level)
        assert die(at, ["SIGKILL"], *REMOVE).returncode == -signal.SIGKILL
        Manager().prune()
        left = leaks.leaked(before)
        assert not left, f"left behind: {left}"

    each(passes, act)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("level", ALL_LEVELS)
def test_run_killed_at_every_failpoint(level: str, bystander: Running) -> None:
    passes = recorded(level, "run")
    if level not in (*CHEAP, "vm"):
        passes = (*added(level, "run"), Pass(Failpoint.STARTED, 0))

    def act(at: Pass) -> None:
        before, names = leaks.snapshot(), others()
        done = die(at, ["SIGKILL"], *run_command(level))
        assert done.returncode == -signal.SIGKILL, done.stderr
        # Even one that was up is removed: by its keeper, whose command did not come to its end.
        prune_and_count(before, bystander, names, may_live=False)

    each(passes, act)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["stop", "rm"])
@pytest.mark.parametrize("level", ALL_LEVELS)
def test_end_killed_at_every_failpoint(level: str, what: str, bystander: Running) -> None:
    passes: Sequence[Pass] = recorded(level, what) if level in CHEAP else added(level, what)
    if not passes:
        pytest.skip(f"{level} adds nothing to what {what} passes at every level")

    def act(at: Pass) -> None:
        before, names = leaks.snapshot(), others()
        start(level)
        done = die(at, ["SIGKILL"], *(STOP if what == "stop" else REMOVE))
        assert done.returncode == -signal.SIGKILL, done.stderr
        untouched = {Failpoint.ENDING, Failpoint.REMOVING} | ({Failpoint.RECORD_PENDING} if what == "rm" else set())
        prune_and_count(before, bystander, names, may_live=at.failpoint in untouched)

    each(passes, act)


@pytest.mark.level("namespace")
def test_prune_killed_at_every_failpoint(bystander: Running) -> None:
    # Of a command in the foreground: what was to go on in the background is removed by its keeper.
    command = [part for part in run_command("namespace") if part != "-d"]

    def debris() -> None:
        assert die(Pass(Failpoint.LIMITS_READ, 0), ["SIGKILL"], *command).returncode < 0

    debris()
    passes = recording("prune")
    assert Failpoint.STATE_REMOVED in {one.failpoint for one in passes}

    def act(at: Pass) -> None:
        before, names = leaks.snapshot(), others()
        debris()
        assert die(at, ["SIGKILL"], "prune").returncode == -signal.SIGKILL
        prune_and_count(before, bystander, names, may_live=False)

    each(passes, act)


CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
INTERRUPTS = [
    *(pytest.param("namespace", (name,), None, id=f"namespace-{name}", marks=pytest.mark.level("namespace"))
      for name in ("SIGTERM", "SIGHUP")),
    pytest.param("namespace", ("SIGINT", "SIGINT"), 1000, id="namespace-twice", marks=pytest.mark.level("namespace")),
    *(pytest.param(level, ("SIGINT",), None, id=f"{level}-once", marks=pytest.mark.level(level)) for level in LEVELS),
    *(pytest.param(level, ("SIGINT", "SIGTERM"), None, id=f"{level}-twice", marks=pytest.mark.level(level))
      for level in LEVELS if level != "namespace"),
]  # fmt: skip


@pytest.mark.parametrize(("level", "signals", "most"), INTERRUPTS)
def test_interrupted_leaves_nothing(level: str, signals: tuple[str, ...], most: int | None, bystander: Running) -> None:
    """Without any prune; the second signal comes while the first one is being dealt with."""
    passes = list(recorded(level, "run"))
    chance = random.Random(f"{level} {signals}")
    sample = sorted(chance.sample(passes, min(most or 3, len(passes))), key=passes.index)

    def act(at: Pass) -> None:
        before = leaks.snapshot()
        done = die(at, signals, *run_command(level))
        # The code is of the signal that ended it: the first, or one that came before the undoing had begun.
        assert done.returncode in {CODES[name] for name in signals}, done.stderr
        assert "Traceback" not in done.stderr
        left = leaks.leaked(before)
        assert not left, f"left behind: {left}"

    each(sample, act)


@pytest.mark.level("namespace")
def test_a_detached_start_whose_command_is_killed_is_undone_by_its_keeper(bystander: Running) -> None:
    """Once there is a keeper, which reads the end of the command's socket; before, `prune` finds what is left."""
    passes = list(recorded("namespace", "run"))
    passes = passes[passes.index(Pass(Failpoint.NAMESPACES_MADE, 0)) : passes.index(Pass(Failpoint.LIMITS_READ, 0)) + 1]

    def act(at: Pass) -> None:
        before = leaks.snapshot()
        assert die(at, ["SIGKILL"], *run_command("namespace")).returncode == -signal.SIGKILL
        left = leaks.leaked(before)
        assert not left, f"left behind: {left}"

    each(passes, act)


def foreground(level: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sandbox", "run", "reactor", "--isolation", level, "--name", NAME]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, **more)


@pytest.mark.level("namespace")
@pytest.mark.parametrize("name", [*CODES, "twice"])
def test_a_followed_sandbox_goes_with_a_signal(name: str, bystander: Running) -> None:
    before = leaks.snapshot()
    with foreground("namespace", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://")
        process.send_signal(getattr(signal, name) if name != "twice" else signal.SIGINT)
        if name == "twice":
            time.sleep(0.02)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == CODES.get(name, 130)
    assert "Traceback" not in errors
    assert not leaks.leaked(before)


@pytest.mark.level("namespace")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_ends_a_followed_sandbox(stream: str, bystander: Running) -> None:
    before = leaks.snapshot()
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    try:
        with foreground("namespace", **{stream: writer, other: subprocess.PIPE}) as process:
            output = "".join(part or "" for part in process.communicate(timeout=60))
    finally:
        os.close(writer)
    assert process.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in output
    assert not leaks.leaked(before)


@pytest.mark.level("namespace")
def test_a_followed_sandbox_of_a_killed_command_is_debris(bystander: Running) -> None:
    before, names = leaks.snapshot(), others()
    with foreground("namespace", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.communicate(timeout=60)
    prune_and_count(before, bystander, names, may_live=False)


@pytest.mark.parametrize(
    "level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS if level != "vm"]
)
def test_killed_at_random_moments(level: str) -> None:
    chance = random.Random(2544)
    for _ in range(3):
        with foreground(level, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(chance.uniform(0.1, 1.2))
            process.kill()
            process.communicate()
        Manager().prune()


@pytest.mark.parametrize("level", ALL_LEVELS)
def test_prune_finds_what_a_lost_store_knew_and_keeps_what_runs(level: str) -> None:
    """Everything carries the id: with the records gone, the sweep still finds all of it."""
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", level, name=NAME))
    try:
        assert not any(running.record.id in line or NAME in line for line in manager.prune())
        assert served(running)
        if level == "process":
            # Its directory holds mounts, so it cannot get lost; what is in it can.
            (error,) = manager.store.remove([running.record.id]).values()
            assert "mounted" in str(error)
            (running.record.directory / "record.json").unlink()
        else:
            assert not manager.store.remove([running.record.id])
    finally:
        manager.prune()
    assert not running.sandbox.state().running
    with pytest.raises(NotFoundError):
        manager.get(running.record.id)


@pytest.mark.level("namespace")
def test_dry_run_removes_nothing() -> None:
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", "namespace"))
    manager.stop(running.record.name, 5)
    try:
        assert any(running.record.name in line for line in manager.prune(dry_run=True))
        assert manager.get(running.record.name).record.id == running.record.id
    finally:
        manager.remove(running.record.name)


@pytest.mark.level(*LEVELS)
def test_every_failpoint_is_passed_somewhere(bystander: Running) -> None:
    """One that no command passes would never be tested."""
    passed = {one.failpoint for level in LEVELS for what in ("run", "stop", "rm") for one in recorded(level, what)}
    with_the_last = {Failpoint.SHARED_REMOVED, Failpoint.LAB_REMOVED}  # test_the_lab_goes_with_the_last_one
    assert set(Failpoint) - passed == with_the_last
