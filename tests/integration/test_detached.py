"""`run -d` at the local levels: its exit code is known, its keeper goes with it, and what ends it early undoes it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandbox as interface
from sandbox.isolation import supervision
from tests.integration.test_cli import sandbox
from tests.verbs import Manager

ROOT = Path(__file__).resolve().parents[2]
LOCAL = [pytest.param(level, marks=pytest.mark.level(level)) for level in ("process", "namespace")]
WAITS = ("run", "-d", "--port", "9", "--")
"""A start that lasts until it is ended: nothing ever answers."""


@pytest.fixture(params=LOCAL)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name(level: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name of its own for the test's sandbox, which is removed in the end."""
    name = re.sub("[^a-z0-9]+", "-", f"detached-{request.node.name}".lower())[:60].strip("-")
    yield name
    sandbox("rm", "-f", name)


def keepers(ident: str = "") -> list[int]:
    """Keepers of detached sandboxes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"/keeper.py") for word in words) and f"sbx-{ident}".encode() in b" ".join(words):
                found.append(int(entry.name))
    return found


def comes_true(condition: Callable[[], bool], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def listed(name: str) -> dict[str, object] | None:
    entries = json.loads(sandbox("ps", "-a", "--format", "json").stdout)
    return next((entry for entry in entries if entry["name"] == name), None)


def test_the_exit_code_is_known_to_others(level: str, name: str) -> None:
    done = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sh", "-c", "sleep 0.5; exit 7")
    assert done.returncode == 0, done.stderr
    ident = done.stdout.strip()
    assert comes_true(lambda: len(keepers(ident)) == 1)
    assert sandbox("wait", name).stdout.strip() == "7"
    directory = Manager().store.find(name).directory
    assert comes_true(lambda: supervision.holder(directory) is None)
    record = Manager().store.find(name)
    assert record.exit_code == 7
    assert record.status.value == "exited"
    assert Manager().get(name).sandbox.state().exit_code == 7


def test_a_stopped_ones_code_is_its_own(level: str, name: str) -> None:
    script = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
    assert sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sh", "-c", script).returncode == 0
    time.sleep(0.3)
    assert Manager().stop(name, 10) == 3


def test_the_keeper_is_alone_and_small(level: str, name: str) -> None:
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sleep", "600").stdout.strip()
    assert comes_true(lambda: len(keepers(ident)) == 1)
    (kept,) = keepers(ident)

    def held() -> list[str]:
        try:
            links = [os.readlink(f"/proc/{kept}/fd/{one}") for one in os.listdir(f"/proc/{kept}/fd") if int(one) > 2]
        except FileNotFoundError:  # it is closing what it does not need
            return []
        return sorted(link.rpartition("/")[2].partition(":")[0] for link in links)

    assert comes_true(lambda: held() == ["anon_inode", "keeper", "log", "pipe", "pipe"]), held()
    assert {os.readlink(f"/proc/{kept}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{kept}/cwd") == "/"
    assert os.getsid(kept) == kept
    # Of its own: how much of the interpreter's file it is charged for depends on who else runs it.
    own = re.search(r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{kept}/smaps_rollup").read_text(), re.MULTILINE)
    assert own is not None
    assert int(own[1]) < 6 * 1024, "KiB"


@pytest.mark.parametrize("verb", [("rm", "-f"), ("stop", "-t", "0"), ("kill",)])
def test_the_keeper_goes_with_it(level: str, name: str, verb: tuple[str, ...]) -> None:
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sleep", "600").stdout.strip()
    assert comes_true(lambda: len(keepers(ident)) == 1)
    assert sandbox(*verb, name).returncode == 0
    if verb[0] == "rm":
        assert not keepers(ident), "gone by the time that the command returns"
    assert comes_true(lambda: not keepers(ident))


def test_rm_removes_it_at_its_end(level: str, name: str) -> None:
    done = sandbox("run", "-d", "--rm", "--isolation", level, "--name", name, "--", "sh", "-c", "sleep 0.3")
    assert done.returncode == 0, done.stderr
    assert comes_true(lambda: listed(name) is None)
    assert comes_true(lambda: not keepers(done.stdout.strip()))


def test_a_killed_keeper_costs_the_exit_code_and_what_is_written_later(level: str, name: str) -> None:
    script = "echo before; sleep 600"
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sh", "-c", script).stdout.strip()
    running = Manager().get(name)
    assert comes_true(lambda: b"".join(running.sandbox.logs()) == b"before\n")
    assert comes_true(lambda: len(keepers(ident)) == 1)
    os.kill(keepers(ident)[0], signal.SIGKILL)
    assert comes_true(lambda: not keepers(ident))
    assert running.sandbox.state().running
    assert supervision.holder(running.record.directory) is None
    assert sandbox("logs", "-f", name).stdout == "before\n"
    assert Manager().stop(name, 10) is None


def test_through_python_too(level: str, name: str) -> None:
    with interface.run(["sh", "-c", "sleep 0.2; exit 7"], isolation=level, name=name, detach=True) as box:
        assert box.wait(20) == 7
        assert comes_true(lambda: Manager().store.find(name).status.value == "exited")
        assert interface.get(name).state.exit_code == 7


def test_errors_are_the_fronts(level: str) -> None:
    done = sandbox("run", "-d", "--isolation", level, "-w", "/nonesuch", "--", "true")
    assert done.returncode == 126
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "/nonesuch" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_front_that_is_ended_early_leaves_nothing(level: str, name: str, number: signal.Signals) -> None:
    """The child unwinds, whatever ends the front: the signal that is passed on, or its death."""
    command = [sys.executable, "-m", "sandbox", *WAITS[:2], "--isolation", level, "--name", name, *WAITS[2:]]
    with subprocess.Popen(
        [*command, "sleep", "600"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as front:
        assert comes_true(lambda: (found := listed(name)) is not None and bool(found["pid"])), "it did not come up"
        front.send_signal(number)
        out, errors = front.communicate(timeout=60)
    assert front.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert out == ""
    assert "Traceback" not in errors
    assert comes_true(lambda: listed(name) is None)


def test_a_keeper_that_is_killed_during_the_start_is_said(level: str, name: str) -> None:
    serve = "import http.server, time; time.sleep(2); http.server.test(port=8000)"
    command = [sys.executable, "-m", "sandbox", "run", "-d", "--isolation", level, "--name", name, "--port", "8000"]
    with subprocess.Popen(
        [*command, "--", "python3", "-c", serve], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as front:
        assert comes_true(lambda: (found := listed(name)) is not None and bool(found["pid"])), "it did not come up"
        kept = supervision.holder(Manager().store.find(name).directory)
        assert kept is not None
        os.kill(kept, signal.SIGKILL)
        out, errors = front.communicate(timeout=60)
    assert (front.returncode, out) == (125, "")
    assert "keeper" in errors
    assert listed(name) is None
