"""Each item of the hardening of level `namespace`: it holds, the same attempt succeeds outside, and without it inside.

The table is in tests/integration/hardening/cases.py; the parent of the sandboxes is as careless as a parent can be.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.kernel import enter
from tests import leaks
from tests.integration.hardening import count
from tests.integration.hardening.cases import CASES, Case
from tests.verbs import Manager

pytestmark = pytest.mark.level("namespace")

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("workload", "exec", "root", "threads")
"""The workload's own process; commands beside it, as its user and as root; a workload whose parent has threads."""
THERE = [name for name, case in CASES.items() if case.there]
TOGETHER = [name for name in THERE if not CASES[name].apart and CASES[name].base is None]

NEWER_THAN_DOCKERS = """
    cachestat fchmodat2 futex_requeue futex_wait futex_wake landlock_add_rule landlock_create_ruleset
    landlock_restrict_self map_shadow_stack memfd_secret mseal name_to_handle_at pidfd_open pkey_alloc pkey_free
    pkey_mprotect process_mrelease process_vm_readv process_vm_writev uretprobe
"""
"""Calls in Docker's current default profile (moby/profiles, 2026) that engines of the last years may leave out."""


class Parent:
    """The careless parent, asked over its standard input and output."""

    def __init__(self, folder: Path) -> None:
        word = secrets.token_hex(8)
        (folder / "secret").write_text(word, encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.hardening.parent", str(folder), word],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, where: str, cases: list[str], **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"where": where, "cases": cases, "switches": [], "ways": [], "before": []} | more
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the careless parent died"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def manager() -> Manager:
    """A manager over the real store."""
    return Manager()


@pytest.fixture(scope="module")
def parent() -> Iterator[Parent]:
    """One for all; what it has lying about is gone with it."""
    before = leaks.snapshot()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="hardening-") as name, Manager().lab():
        folder = Path(name)
        folder.chmod(0o755)
        found = Parent(folder)
        yield found
        found.close()
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def held(parent: Parent) -> dict[str, dict[str, Any]]:
    """What every attempt comes to behind all walls, each way."""
    answers = parent.ask("inside", TOGETHER, ways=["exec", "root"])
    return answers | {"threads": parent.ask("threads", TOGETHER)["workload"]}


@pytest.fixture(scope="module")
def outside(parent: Parent) -> dict[str, Any]:
    """What every attempt comes to outside."""
    return parent.ask("outside", [name for name in TOGETHER if not CASES[name].before])


def behind(parent: Parent, case: Case, *fields: str, ways: tuple[str, ...]) -> dict[str, Any]:
    thrown = [[case.name, field] for field in fields]
    return parent.ask("inside", [case.name], switches=thrown, ways=[way for way in ways if way != "workload"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TOGETHER)
def test_holds_inside(held: dict[str, dict[str, Any]], name: str, way: str) -> None:
    assert name in held[way], held
    answer = held[way][name]
    assert CASES[name].held(answer), answer


@pytest.mark.parametrize("name", [name for name in THERE if name not in TOGETHER])
def test_holds_inside_a_sandbox_of_its_own(parent: Parent, name: str) -> None:
    case = CASES[name]
    answers = behind(parent, case, "base", ways=case.ways)
    if case.refusal is not None:
        assert re.search(case.refusal, answers["refused"])
        return
    for way in case.ways:
        if answers[way]:  # nothing: it went down with the sandbox
            assert case.held(answers[way].get(name)), answers


@pytest.mark.parametrize("name", [name for name in THERE if CASES[name].outside is None])
def test_succeeds_outside(parent: Parent, outside: dict[str, Any], name: str) -> None:
    case = CASES[name]
    answers = outside if name in outside else parent.ask("outside", [name], before=list(case.before))
    assert name in answers, answers
    assert not case.held(answers[name]), f"no control: refused outside too, with {answers[name]}"


@pytest.mark.parametrize("name", THERE)
def test_fails_without_the_item(parent: Parent, name: str) -> None:
    case = CASES[name]
    answers = behind(parent, case, "base", "without", ways=case.ways)
    for way in case.ways:
        assert name in answers.get(way, ()), answers
        assert not case.held(answers[way][name]), f"the test would not notice: {way} still gets {answers[way][name]}"


INSTANCES = """
import ctypes, time
libc, made = ctypes.CDLL(None), 0
while made < 4096 and libc.inotify_init1(0) >= 0: made += 1
print(made, flush=True)
time.sleep(1)
"""


def watchers_left(manager: Manager) -> int:
    """How many inotify instances root has on this host while a sandbox takes all that it can have, up to three."""
    spec = replace(manager.make_spec("reactor", "namespace"), port=None, argv=("/usr/bin/python3", "-c", INSTANCES))
    libc = ctypes.CDLL(None)
    with manager.running(spec) as running:
        deadline = time.monotonic() + 30
        while not b"".join(running.sandbox.logs()).strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        made = [libc.inotify_init1(os.O_CLOEXEC) for _ in range(3)]
    for descriptor in made:
        if descriptor >= 0:
            os.close(descriptor)
    return sum(descriptor >= 0 for descriptor in made)


def test_what_is_counted_per_user_is_not_roots(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watchers_left(manager) == 3
    monkeypatch.setattr(enter, "OWNER", 0)
    assert watchers_left(manager) == 0, "the test would not notice"


def test_the_filter_does_what_the_list_says() -> None:
    counted = count.namespace()
    assert not counted.listed & counted.refused
    assert not counted.passed - counted.listed
    assert len(counted.undecided) < 30


@pytest.mark.level("container")
def test_the_filter_is_no_wider_than_dockers_but_for_what_dockers_does_not_know() -> None:
    """The engine's profile is older than the kernel here; what it leaves out of ours was judged by its successors."""
    ours, docker = count.namespace(), count.docker()
    for line in count.lines((ours, docker)):
        print(line)
    assert not docker.listed & docker.refused
    assert ours.listed - docker.listed <= set(NEWER_THAN_DOCKERS.split())
    # Linux 6.14 lets uretprobe past every filter.
    assert docker.passed - docker.listed <= {"uretprobe"}
