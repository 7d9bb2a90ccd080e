"""Limits held at every level: each pushed past by a quarter or more from inside, with the kernel's counters as witness.

Two sandboxes for each level: one that is pushed and must go on serving, and one that gets a fork bomb and is then
killed for its memory, while the first one and this host go on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import EngineError
from sandbox.isolation.base import SHM_BYTES, Sandbox
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.isolation.local.sandbox import LocalSandbox
from sandbox.isolation.vm.sandbox import CONSOLE_LOG
from sandbox.kernel import cgroup, procfs
from sandbox.kernel.cgroup import Group
from sandbox.measure.isolation import limits as pushing
from sandbox.spec import MIB, SandboxSpec
from tests.verbs import Manager, Running

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
CPUS, PIDS, DISK = 0.8, 64, 8 * MIB
MEMORY = {"gvisor": 512 * MIB}
SMALL = 256 * MIB
"""As many processes as there may be must fit (an interpreter takes 1.5 to 2 MiB of its own; gVisor's own kernel takes 2
to 4 MiB for each), for else the bomb is an accident for lack of memory, which may well end the sandbox."""
BEYOND = pushing.BEYOND
BURN_SECONDS, BOMB_SECONDS = 3.0, 2.0
OOM_EXIT = 128 + signal.SIGKILL
ENDED_BY_A_BOMB = {"gvisor"}
"""Its kernel is a process of the host, with threads for each process inside; see docs/container.md."""
COUNTED_ON_THE_HOST = {"process", "namespace", "container"}
"""Levels whose processes are the host's, and counted by one of its control groups."""
SLOWEST_REPLY = 10.0
"""Seconds; an emulated guest that shares two cores with a bomb takes its time, but answers."""

BURN = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
os.fork()
while time.monotonic() < end: pass
"""
FILL = """
import errno, json, os, sys
folder, size, found = sys.argv[1], int(sys.argv[2]), {"wrote": 0, "error": None}
name = os.path.join(folder, "fill")
number = os.open(name, os.O_CREAT | os.O_WRONLY, 0o600)
try:
    while found["wrote"] < size: found["wrote"] += os.write(number, bytes(65536))
except OSError as error: found["error"] = errno.errorcode[error.errno]
seen = os.statvfs(folder)
found["size"], found["free"] = seen.f_frsize * seen.f_blocks, seen.f_frsize * seen.f_bfree
os.close(number)
os.unlink(name)
print(json.dumps(found))
"""
BOMB = """
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try: os.fork()
    except OSError: time.sleep(0.001)
"""
HOG = """
import mmap, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("waiting", flush=True)
signal.sigwait({signal.SIGUSR1})
# In pieces, for a kernel refuses at once what is more than all of its memory; filled by the kernel, for page by page
# from here a small guest evicts this very program again and again before it gives up.
kept, piece = [], 1 << 24
while len(kept) * piece < int(sys.argv[1]):
    kept.append(mmap.mmap(-1, piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))
print("took all of it", flush=True)
"""


def spec(manager: Manager, level: str) -> SandboxSpec:
    """A server with small limits."""
    memory = f"{MEMORY.get(level, SMALL) // MIB}m"
    return replace(manager.make_spec("reactor", level, cpus=str(CPUS), memory=memory, pids_limit=PIDS), disk=DISK)


@pytest.fixture(scope="module")
def limited(level: str, manager: Manager, nothing_left_of_the_shared_one: None) -> Iterator[Running]:
    """One that has to stay, with its limits as they were read back."""
    with manager.running(spec(manager, level)) as running:
        read = running.sandbox.limits()
        assert read.cpus == pytest.approx(CPUS, abs=0.001)
        assert (read.memory, read.pids, read.disk) == (MEMORY.get(level, SMALL), PIDS, DISK)
        yield running


def killed_for_memory(running: Running) -> bool:
    """The witness: the control group's counter, the engine that watched it, or the log of the guest's own kernel."""
    level = running.record.spec.isolation
    if level in ("process", "namespace"):
        return Group(running.record.id).events()["oom_kill"] > 0
    if level == "vm":
        return b"Out of memory: Killed process" in (running.record.directory / CONSOLE_LOG).read_bytes()
    assert isinstance(running.sandbox, ContainerSandbox)
    found = running.sandbox.inspect()
    return found is not None and bool(found["State"]["OOMKilled"])


def throttled(pid: int) -> int:
    """Periods cut short by the host's kernel, in the nearest control group with a CPU quota, from a process upwards."""
    where = cgroup.hierarchy()
    places = procfs.groups(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
    v2 = "cpu" not in where.v1
    path = Path(places["" if v2 else "cpu"].lstrip("/"))
    base = where.v2 if v2 else where.v1["cpu"]
    assert base is not None
    while not _has_quota(base / path, v2=v2):
        assert path != path.parent, f"no group of process {pid} has a quota"
        path = path.parent
    counted = dict(line.split() for line in (base / path / "cpu.stat").read_text(encoding="ascii").splitlines())
    return int(counted["nr_throttled"])


def _has_quota(group: Path, *, v2: bool) -> bool:
    try:
        text = (group / ("cpu.max" if v2 else "cpu.cfs_quota_us")).read_text(encoding="ascii")
    except FileNotFoundError:
        return False  # the root has none
    return not text.startswith(("max", "-1"))


def used(running: Running) -> float:
    """Seconds of CPU time, as the host's kernel has counted them."""
    seconds = running.sandbox.stats().cpu_seconds
    assert seconds is not None
    return seconds


def test_cpu(limited: Running) -> None:
    pid = limited.sandbox.state().pid
    assert pid is not None
    cut, seconds, began = throttled(pid), used(limited), time.monotonic()
    done = limited.sandbox.exec([*PYTHON, BURN, str(BURN_SECONDS)], timeout=120)
    seconds, took = used(limited) - seconds, time.monotonic() - began
    assert done.exit_code == 0, done.stderr
    assert throttled(pid) > cut, "the quota was never used up"
    assert seconds / took < CPUS * 1.1


def test_processes(limited: Running) -> None:
    push = pushing.push_pids(limited.sandbox)
    assert (push.limit, push.asked) == (PIDS, int(PIDS * BEYOND))
    assert push.ended == "refused: EAGAIN"
    assert push.got is not None
    assert push.got < PIDS
    if push.refusals is not None:  # gVisor's kernel counts none
        assert push.refusals > 0, push
    assert push.peak is not None
    assert push.peak <= PIDS


@pytest.mark.parametrize(
    ("folder", "size", "root"),
    [("/tmp", DISK, False), ("/dev/shm", SHM_BYTES, False), ("/run", MIB, True)],
)
def test_disk(limited: Running, folder: str, size: int, root: bool) -> None:
    done = limited.sandbox.exec([*PYTHON, FILL, folder, str(int(size * BEYOND))], timeout=120, root=root)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["error"] == "ENOSPC"
    assert found["wrote"] <= size == found["size"]
    assert found["free"] == 0
    again = limited.sandbox.exec([*PYTHON, FILL, folder, "65536"], timeout=120, root=root)
    assert json.loads(again.stdout)["error"] is None, "what was freed can be written again"


def test_swap(limited: Running) -> None:
    """Memory and swap together are limited to what memory alone is."""
    done = limited.sandbox.exec(["cat", "/proc/meminfo"], timeout=60)
    swap = next(int(line.split()[1]) for line in done.stdout.decode().splitlines() if line.startswith("SwapTotal"))
    group = pushing.Group.of(limited.sandbox.state().pid or 0, "memory")
    assert group is not None
    if limited.record.spec.isolation == "vm":
        assert swap == 0, "the guest has swap"
    elif group.v2:
        assert (group.folder / "memory.swap.max").read_text(encoding="ascii").strip() == "0"
    else:
        both = group.folder / "memory.memsw.limit_in_bytes"
        assert int(both.read_text(encoding="ascii")) == limited.record.spec.memory


class Client(threading.Thread):
    """Asks a server again and again, and keeps what it got."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.took: list[float] = []
        self.failed: list[str] = []
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            try:
                with urllib.request.urlopen(self.url, timeout=SLOWEST_REPLY) as reply:
                    assert reply.status == 200
            except OSError as error:
                self.failed.append(str(error))
            self.took.append(time.monotonic() - began)
            time.sleep(0.02)

    def stop(self) -> None:
        self._end.set()
        self.join(SLOWEST_REPLY * 2)


@contextmanager
def others_serve(sibling: Running) -> Iterator[None]:
    """All through the block a sibling answers, and this host starts processes."""
    assert sibling.url is not None
    client = Client(sibling.url)
    client.start()
    try:
        yield
        subprocess.run(["true"], check=True, timeout=SLOWEST_REPLY)
    finally:
        client.stop()
    assert not client.failed
    assert len(client.took) > 2
    assert sibling.sandbox.state().running


class Doomed:
    """One whose workload takes a quarter too much memory when it is told to; made anew if it is gone."""

    def __init__(self, manager: Manager, level: str) -> None:
        self._manager = manager
        made = spec(manager, level)
        self._spec = replace(made, port=None, argv=(*PYTHON, HOG, str(int(made.memory * BEYOND))))
        self._running: Running | None = None

    def get(self) -> Running:
        """The sandbox, running, its workload waiting."""
        if self._running is None or not self._running.sandbox.state().running:
            self.close()
            self._running = self._manager.run(self._spec)
            deadline = time.monotonic() + 60
            while b"waiting" not in b"".join(self._running.sandbox.logs()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        return self._running

    def close(self) -> None:
        if self._running is not None:
            self._manager.destroy(self._running)
            self._running = None


@pytest.fixture(scope="module")
def doomed(level: str, manager: Manager, nothing_left_of_the_shared_one: None) -> Iterator[Doomed]:
    """For what may well be the end of it."""
    found = Doomed(manager, level)
    found.get()  # here, before the count of the test that is the first to use it
    yield found
    found.close()


def has_room(sandbox: Sandbox) -> bool:
    """Whether a command can be run in it.

    Raises:
        EngineError: not in one that has ended.
    """
    try:
        return sandbox.exec(["true"], timeout=60).exit_code == 0
    except EngineError:
        if not sandbox.state().running:
            raise
        return False


def test_a_fork_bomb_stays_inside(limited: Running, doomed: Doomed, level: str) -> None:
    sandbox = doomed.get().sandbox
    assert sandbox.limits().pids == PIDS
    with others_serve(limited):
        try:
            sandbox.exec([*PYTHON, BOMB, str(BOMB_SECONDS)], timeout=120)
            deadline = time.monotonic() + 60
            while not has_room(sandbox):  # the last of them are still ending
                assert time.monotonic() < deadline
                time.sleep(0.2)
        except EngineError:
            assert level in ENDED_BY_A_BOMB
            assert isinstance(sandbox.wait(60), int)
    if level in ENDED_BY_A_BOMB:
        doomed.close()  # it may have lived to here and die of it yet
        return
    assert sandbox.state().running
    if level in COUNTED_ON_THE_HOST:
        assert isinstance(sandbox, LocalSandbox | ContainerSandbox)
        assert sandbox.events()["pids_max"] > 0


def test_killed_for_its_memory(limited: Running, doomed: Doomed, manager: Manager) -> None:
    running = doomed.get()
    assert running.sandbox.limits().memory == running.record.spec.memory
    with others_serve(limited):
        running.sandbox.kill(signal.SIGUSR1)
        assert running.sandbox.wait(60) == OOM_EXIT
    state = running.sandbox.state()
    assert not state.running
    assert state.exit_code == OOM_EXIT
    assert b"took all" not in b"".join(running.sandbox.logs())
    assert killed_for_memory(running)
    manager.remove(running.record.id)
    assert not running.record.directory.exists()
