"""`run -d` at the local levels: its exit code is known, its monitor goes with it, and what ends it early undoes it."""

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

from sandbox.isolation.local import exit
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


def monitors(ident: str = "") -> list[int]:
    """Processes that wait for a detached sandbox's end."""
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
    assert len(monitors(ident)) == 1
    assert sandbox("wait", name).stdout.strip() == "7"
    assert comes_true(lambda: not monitors(ident))
    record = Manager().store.find(name)
    assert record.exit_code == 7
    assert record.status.value == "exited"
    assert Manager().get(name).sandbox.state().exit_code == 7


def test_a_stopped_ones_code_is_its_own(level: str, name: str) -> None:
    script = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
    assert sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sh", "-c", script).returncode == 0
    time.sleep(0.3)
    assert Manager().stop(name, 10) == 3


def test_the_monitor_is_alone_and_small(level: str, name: str) -> None:
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sleep", "600").stdout.strip()
    (monitor,) = monitors(ident)
    assert comes_true(lambda: not [one for one in os.listdir(f"/proc/{monitor}/fd") if int(one) > 2])
    assert {os.readlink(f"/proc/{monitor}/fd/{number}") for number in range(3)} == {"/dev/null"}
    assert os.readlink(f"/proc/{monitor}/cwd") == "/"
    assert os.getsid(monitor) == monitor
    pss = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{monitor}/smaps_rollup").read_text(), re.MULTILINE)
    assert pss is not None
    assert int(pss[1]) < 6 * 1024, "KiB"


@pytest.mark.parametrize("verb", [("rm", "-f"), ("stop", "-t", "0"), ("kill",)])
def test_the_monitor_goes_with_it(level: str, name: str, verb: tuple[str, ...]) -> None:
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sleep", "600").stdout.strip()
    assert len(monitors(ident)) == 1
    assert sandbox(*verb, name).returncode == 0
    if verb[0] == "rm":
        assert not monitors(ident), "gone by the time that the command returns"
    assert comes_true(lambda: not monitors(ident))


def test_rm_removes_it_at_its_end(level: str, name: str) -> None:
    done = sandbox("run", "-d", "--rm", "--isolation", level, "--name", name, "--", "sh", "-c", "sleep 0.3")
    assert done.returncode == 0, done.stderr
    assert comes_true(lambda: listed(name) is None)
    assert comes_true(lambda: not monitors(done.stdout.strip()))


def test_a_killed_monitor_costs_the_exit_code_alone(level: str, name: str) -> None:
    ident = sandbox("run", "-d", "--isolation", level, "--name", name, "--", "sleep", "600").stdout.strip()
    os.kill(monitors(ident)[0], signal.SIGKILL)
    running = Manager().get(name)
    assert comes_true(lambda: not monitors(ident))
    assert running.sandbox.state().running
    assert exit.monitor(running.record) is not None
    assert Manager().stop(name, 10) is None


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


def test_a_killed_other_half_is_said(level: str, name: str) -> None:
    command = [sys.executable, "-m", "sandbox", *WAITS[:2], "--isolation", level, "--name", name, *WAITS[2:]]
    with subprocess.Popen(
        [*command, "sleep", "600"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as front:
        assert comes_true(lambda: (found := listed(name)) is not None and bool(found["pid"])), "it did not come up"
        (child,) = map(int, Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text().split())
        os.kill(child, signal.SIGKILL)
        out, errors = front.communicate(timeout=60)
    assert (front.returncode, out) == (125, "")
    assert "SIGKILL" in errors
    assert "prune" in errors
