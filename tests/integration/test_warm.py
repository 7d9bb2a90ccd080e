"""Warm starts: the same walls as cold ones, and nothing of one sandbox in the next."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox.errors import SpecError, UnavailableError
from sandbox.isolation.local import warm as local_warm
from sandbox.lifecycle import warm as pool
from sandbox.request import resolve as request
from sandbox.spec import SandboxSpec
from tests.integration.conftest import nothing_left_behind
from tests.verbs import Manager, Running

__all__ = ["nothing_left_behind"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager over the real store; what was prepared is removed at the end."""
    found = Manager()
    yield found
    pool.stop()


def spec(level: str = "namespace", target: Any = "reactor", **options: Any) -> SandboxSpec:
    return request.make(target, level, request.Options(**options)).spec


def quiet(_line: str) -> None:
    """Nobody watches."""


@contextmanager
def warm(manager: Manager, wanted: SandboxSpec) -> Iterator[Running]:
    running = manager.run(wanted, progress=quiet, owner=True, warm=True)
    try:
        yield running
    finally:
        manager.destroy(running)


def get(running: Running, path: str, data: bytes | None = None) -> Any:
    with urllib.request.urlopen(f"{running.url}{path}", data, timeout=30) as answer:
        return json.loads(answer.read())


def leaves_no_trace(manager: Manager, wanted: SandboxSpec, second: SandboxSpec) -> None:
    """Change whatever a workload can change, and look for it in the next one."""
    script = "date > /tmp/trace; date > /dev/shm/trace; cat /tmp/trace"
    with warm(manager, wanted) as one:
        assert one.sandbox.exec(["/bin/sh", "-c", script], timeout=60).stdout
        before = get(one, "counter")
        assert get(one, "counter", b"") != before
        first = one.record
    with warm(manager, second) as other:
        assert other.record.id != first.id
        found = other.sandbox.exec(["/bin/sh", "-c", "ls /tmp /dev/shm"], timeout=60)
        assert b"trace" not in found.stdout
        assert get(other, "counter") == before


@pytest.mark.level("namespace")
def test_namespace_no_state_passes_from_one_to_the_next(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    leaves_no_trace(manager, spec(), spec())


@pytest.mark.level("namespace")
def test_namespace_has_the_walls_of_a_cold_start(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    wanted = spec(memory="96m", cpus="0.5", pids_limit=40, disk="8m", env=["COLOUR=blue"], name="warm-walls")
    with manager.running(wanted) as cold:
        expected = comparable(cold)
    with warm(manager, wanted) as running:
        assert comparable(running) == expected
        environ = Path(f"/proc/{running.record.process.pid}/root/proc/2/status")  # type: ignore[union-attr]
        assert re.search(r"^CapEff:\s+0+$", environ.read_text(encoding="ascii"), re.M)
        found = running.sandbox.exec(["/bin/sh", "-c", "hostname; echo $COLOUR; ls -l /proc/self/fd"], timeout=60)
        assert found.stdout.splitlines()[:2] == [b"warm-walls", b"blue"]


def comparable(running: Running) -> dict[str, Any]:
    """What is in force, without what differs between any two sandboxes."""
    found = running.sandbox.inspection().to_json()
    text = json.dumps({name: found[name] for name in ("user", "capabilities", "seccomp", "limits")}, sort_keys=True)
    kinds = {name: entry["owner"] for name, entry in found["namespaces"].items()}
    mounts = json.dumps(found["mounts"], sort_keys=True)
    scrub = re.compile(re.escape(running.record.id))
    return json.loads(scrub.sub("ID", json.dumps([text, kinds, mounts])))  # type: ignore[no-any-return]


@pytest.mark.level("namespace")
def test_namespace_shares_the_address_space_layout_and_says_so(manager: Manager) -> None:
    """What the documentation says is shared, is: siblings have one layout, a cold start has another."""
    pool.fill(spec(), 1, quiet)

    def layout(running: Running) -> str:
        maps = Path(f"/proc/{running.record.process.pid}/maps").read_text(encoding="ascii")  # type: ignore[union-attr]
        return next(line for line in maps.splitlines() if "libc" in line).split("-")[0]

    with warm(manager, spec()) as one, warm(manager, spec()) as other:
        assert layout(one) == layout(other)
        with manager.running(spec()) as cold:
            assert layout(cold) != layout(one)
    assert "address space" in (ROOT / "docs" / "warm.md").read_text(encoding="utf-8")


@pytest.mark.level("namespace")
def test_namespace_its_end_is_known_and_signals_reach_it(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    with warm(manager, spec()) as running:
        running.sandbox.kill(signal.SIGTERM)
        assert running.sandbox.wait(20) == 0  # it drained
    with warm(manager, spec()) as running:
        assert running.sandbox.stop(10) == 0
    with warm(manager, spec()) as running:
        get_crash(running)
        deadline = time.monotonic() + 20
        while running.sandbox.state().running and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running.sandbox.wait(5) == 128 + signal.SIGSEGV


def get_crash(running: Running) -> None:
    with pytest.raises(OSError, match=r".*"):
        urllib.request.urlopen(f"{running.url}crash?how=segv", timeout=10)


@pytest.mark.level("namespace")
def test_namespace_the_zygote_may_die(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    zygote = local_warm.running()
    assert zygote is not None
    with warm(manager, spec()) as running:
        os.kill(zygote.pid, signal.SIGKILL)
        while zygote.alive():
            time.sleep(0.01)
        assert get(running, "stats")["model"] == "reactor"
        with pytest.raises(UnavailableError, match="nothing is prepared"):
            manager.run(spec(), progress=quiet, warm=True)
        pool.fill(spec(), 1, quiet)  # a new one
        with warm(manager, spec()) as other:
            assert get(other, "stats")["model"] == "reactor"


def made_ahead() -> int:
    """The pid of the zygote's child that waits; it is made when nobody has asked for a while."""
    zygote = local_warm.running()
    assert zygote is not None
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text(encoding="ascii")
        for pid in text.split():
            # Those that have become somebody have the mounts of their sandbox.
            if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
                return int(pid)
        time.sleep(0.02)
    raise AssertionError("no child was made ahead")


@pytest.mark.level("namespace")
def test_namespace_a_child_is_made_ahead_and_serves_once(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    ahead = made_ahead()
    with warm(manager, spec()) as one:
        assert one.record.process is not None
        assert one.record.process.pid == ahead
        with warm(manager, spec()) as other:  # at once, with or without one that was made ahead
            assert other.record.process is not None
            assert other.record.process.pid != ahead
            assert made_ahead() not in (ahead, other.record.process.pid)


@pytest.mark.level("namespace")
def test_namespace_the_child_made_ahead_holds_nothing_and_may_die(manager: Manager) -> None:
    pool.fill(spec(), 1, quiet)
    ahead = made_ahead()
    deadline = time.monotonic() + 10
    while (held := sorted(os.listdir(f"/proc/{ahead}/fd"))) != ["0", "1", "2", "3"]:  # it closes the rest at once
        assert time.monotonic() < deadline, held
        time.sleep(0.02)
    assert os.readlink(f"/proc/{ahead}/fd/3").startswith("socket:")
    for kind in ("user", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{ahead}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    os.kill(ahead, signal.SIGKILL)
    with warm(manager, spec()) as running:
        assert get(running, "stats")["model"] == "reactor"
    last = made_ahead()
    pool.stop(("namespace",))
    deadline = time.monotonic() + 10
    while Path(f"/proc/{last}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{last}").exists()


@pytest.mark.level("namespace")
@pytest.mark.parametrize("server", ["callback", "coroutine", "eventloop", "fork", "thread", "blocking", "sequential"])
def test_namespace_every_server(manager: Manager, server: str) -> None:
    pool.fill(spec(), 1, quiet)
    with warm(manager, spec(target=server)) as running:
        assert get(running, "stats")["model"] == server


@pytest.mark.level("namespace")
def test_namespace_one_zygote_and_many_children(manager: Manager) -> None:
    first = pool.fill(spec(), 1, quiet)
    assert pool.fill(spec(), 5, quiet) == first
    with warm(manager, spec()) as a, warm(manager, spec()) as b, warm(manager, spec()) as c:
        assert len({get(one, "stats")["model"] + one.record.address for one in (a, b, c)}) == 3


@pytest.mark.level("namespace")
def test_by_the_python_interface(manager: Manager) -> None:
    with pytest.raises(UnavailableError, match="nothing is prepared"):
        sandbox.run("reactor", warm=True)
    pool.fill(spec(), 1, quiet)
    zygote = local_warm.running()
    assert zygote is not None
    with sandbox.run("reactor", warm=True) as box:
        parent = Path(f"/proc/{box.state.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
        assert int(parent) == zygote.pid
        assert box.stop() == 0


@pytest.mark.level("namespace")
def test_what_cannot_start_warm_is_refused(manager: Manager, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nothing is prepared for a warm start of reactor at level namespace"):
        manager.run(spec(), progress=quiet, warm=True)
    for level in ("process", "gvisor"):
        with pytest.raises(SpecError, match=f"no warm start at level {level}"):
            pool.fill(spec(level), 1, quiet)
    with pytest.raises(SpecError, match="a published port, a mount or an application"):
        manager.run(spec(publish=["18099:8080"]), progress=quiet, warm=True)
    pool.fill(spec(), 1, quiet)
    with pytest.raises(SpecError, match="only the reference servers"):
        manager.run(spec(target=["sleep", "10"]), progress=quiet, warm=True)


@pytest.mark.level("container")
def test_container(manager: Manager) -> None:
    taken_once(manager, "container")


@pytest.mark.level("vm")
def test_vm(manager: Manager) -> None:
    pool.fill(spec("vm", memory="128m"), 1, quiet)
    with warm(manager, spec("vm", memory="128m", name="taken")) as running:
        assert running.record.name == "taken"
        assert get(running, "stats")["model"] == "reactor"
        assert running.record.timeline.complete


def taken_once(manager: Manager, level: str) -> None:
    pool.fill(spec(level, memory="128m"), 2, quiet)
    assert len(pool.waiting()) == 2
    assert all(manager.get(one.id).sandbox.state().paused for one in pool.waiting())
    with pytest.raises(UnavailableError, match="with the same limits"):
        manager.run(spec(level, memory="64m"), progress=quiet, warm=True)
    leaves_no_trace(manager, spec(level, memory="128m", name="one"), spec(level, memory="128m", name="other"))
    assert not pool.waiting()
    with pytest.raises(UnavailableError):
        manager.run(spec(level, memory="128m"), progress=quiet, warm=True)
