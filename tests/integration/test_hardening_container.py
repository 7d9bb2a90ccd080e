"""Each item of the hardening of level `container`: the attempt fails inside, and succeeds once that item is taken away.

One container as the level makes it serves all attempts. For each item a second one is made by the same driver, with a
body of the create call in which that item alone is missing: there the same attempt succeeds, which is the control, and
shows that the test would notice.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.isolation.docker import cgroup
from sandbox.isolation.docker import network as docker_network
from sandbox.isolation.docker.driver import ContainerIsolation
from sandbox.isolation.docker.network import Lab
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.isolation.keeper import PART_BYTES
from sandbox.kernel import syscalls
from sandbox.spec import MIB, SandboxSpec
from sandbox.state.record import Record
from tests import leaks
from tools.seccomp import compiler

pytestmark = pytest.mark.level("container")

LAB = Lab("sandbox-hard", "sbxhard0", "10.197.0.0/16", "10.197.1.0/24", "10.197.0.1")
MEMORY = 96 * MIB
SPEC = SandboxSpec("hard-1", "test", "container", ("/usr/bin/sleep", "600"), memory=MEMORY, pids_limit=48)
NUMBERS = compiler.MACHINES[os.uname().machine][1]
ALL_ONES = 2**64 - 1
SEGMENT = 0x5B5B0001
"""The key of a System V segment of the host's."""

PROBE = r"""
import ctypes, errno, json, mmap, os, shutil, signal, socket, subprocess, sys, time

def guarded(act):
    try:
        return act() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    child = os.fork()
    if not child:
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(one) for one in arguments])
        print(json.dumps("done" if result >= 0 else errno.errorcode[ctypes.get_errno()]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    sys.exit()

def write(path):
    def act():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return guarded(act)

def give_away(path):
    write(path)
    return guarded(lambda: os.chown(path, 1, 1))

def fill(directory, size):
    number = os.open(directory + "/fill", os.O_CREAT | os.O_RDWR, 0o600)
    os.unlink(directory + "/fill")
    return guarded(lambda: os.posix_fallocate(number, 0, size))

def run_from(directory):
    path = directory + "/true"
    shutil.copy("/usr/bin/true", path)
    return guarded(lambda: subprocess.run([path], check=True) and None)

def flags(directory):
    found = os.statvfs(directory).f_flag
    return [name for name in ("NOSUID", "NODEV", "NOEXEC") if found & getattr(os, "ST_" + name)]

def forks(count):
    reader, writer = os.pipe()
    made = []
    try:
        while len(made) < count:
            child = os.fork()
            if not child:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            made.append(child)
    except OSError:
        pass
    os.close(writer)
    for child in made:
        os.waitpid(child, 0)
    return "done" if len(made) == count else "EAGAIN"

def touch(size):
    child = os.fork()
    if not child:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, size, mmap.PAGESIZE):
            area[page] = 1
        os._exit(0)
    return "done" if os.waitpid(child, 0)[1] == 0 else "killed"

def orphans():
    if not os.fork():
        if not os.fork():
            os._exit(0)
        os._exit(0)
    os.wait()
    time.sleep(0.3)
    states = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with open(f"/proc/{entry}/stat") as stream:
                states.append(stream.read().rpartition(")")[2].split()[0])
    return "zombie" if "Z" in states else "reaped"

def ask_engine(path):
    def act():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return "done" if b"200" in sock.recv(100) else "?"
    return guarded(act)

def connect(address, port):
    def act():
        with socket.socket() as sock:
            sock.settimeout(2)
            sock.connect((address, port))
    return guarded(act)

def route():
    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("192.0.2.1", 9))
    return guarded(act)

def status(field):
    with open("/proc/self/status") as stream:
        return next(line.split()[1] for line in stream if line.startswith(field + ":"))

def become_root():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(reader, 0)
        os.execv("/usr/bin/su", ["su"])
    time.sleep(0.3)
    with open(f"/proc/{child}/status") as stream:
        uid = next(line.split()[2] for line in stream if line.startswith("Uid:"))
    os.kill(child, 9) if uid != "0" else os.close(writer)
    return uid

def opens(path):
    return guarded(lambda: os.close(os.open(path, os.O_RDONLY)))

def names_the_engine():
    with open("/proc/self/cgroup") as stream:
        return "docker" in stream.read()

def has_text(path):
    with open(path) as stream:
        return bool(stream.read(100))

def links():
    return [name for _, name in socket.if_nameindex() if name == "sbxhard0"]

def segment(key):
    return "done" if ctypes.CDLL(None).shmget(key, 0, 0) >= 0 else "ENOENT"

name, arguments = json.loads(sys.argv[1])
print(json.dumps(globals()[name](*arguments)), flush=True)
"""

Body = dict[str, Any]
Weaken = Callable[[Body], None]


def host(**changes: Any) -> Weaken:
    """Take settings out of HostConfig (None), or put others in."""

    def weaken(body: Body) -> None:
        for name, value in changes.items():
            if value is None:
                del body["HostConfig"][name]
            else:
                body["HostConfig"][name] = value

    return weaken


def without_profile(body: Body, instead: tuple[str, ...] = ()) -> None:
    body["HostConfig"]["SecurityOpt"] = ["no-new-privileges", *instead]


def unconfined(body: Body) -> None:
    without_profile(body, ("seccomp=unconfined",))


def tmpfs_without(*options: str) -> Weaken:
    def weaken(body: Body) -> None:
        places = body["HostConfig"]["Tmpfs"]
        places["/tmp"] = ",".join(one for one in places["/tmp"].split(",") if one.partition("=")[0] not in options)

    return weaken


def suid(body: Body) -> None:
    """Without no-new-privileges; the filter stays."""
    body["HostConfig"]["SecurityOpt"] = [one for one in body["HostConfig"]["SecurityOpt"] if one.startswith("seccomp")]


def no_init(body: Body) -> None:
    body["Entrypoint"] = ["/usr/bin/sleep", "600"]
    body["Cmd"] = []


def as_root(body: Body) -> None:
    body["User"] = "0:0"


def privileged_root(body: Body) -> None:
    """A command of root gets its capabilities from the container's, which a privileged user has."""
    as_root(body)
    host(CapDrop=None)(body)


def executable_tmp(body: Body) -> None:
    """The engine adds what is not taken out by its opposite."""
    body["HostConfig"]["Tmpfs"]["/tmp"] = body["HostConfig"]["Tmpfs"]["/tmp"].replace("noexec", "exec")


def on_the_hosts_network(body: Body) -> None:
    host(NetworkMode="host", Dns=None)(body)
    for name in ("NetworkingConfig", "MacAddress"):
        body.pop(name, None)


@dataclass(frozen=True)
class Case:
    """An attempt: what it comes to behind the wall, and what without it.

    Attributes:
        attempt: a function of the probe and its arguments.
        held: its answer behind the wall.
        through: its answer without the item.
        weaken: takes the item away.
        root: run it as the sandbox's root.
        workload: run it as the workload, in place of a command beside it.
        base: what is taken away in both, because it would hold the attempt too.
    """

    attempt: tuple[Any, ...]
    held: Any
    through: Any
    weaken: Weaken
    root: bool = False
    workload: bool = False
    base: Weaken | None = None


def refused_call(name: str, *arguments: int, held: str = "EPERM", through: str, weaken: Weaken) -> Case:
    return Case(("call", NUMBERS[name], *arguments), held, through, weaken)


CASES = {
    "capabilities": Case(("give_away", "/tmp/x"), "EPERM", "done", host(CapDrop=None), base=as_root, workload=True),
    "capabilities of a root beside it": Case(("give_away", "/tmp/x"), "EPERM", "done", privileged_root, root=True),
    "another user than root": Case(("opens", "/etc/shadow"), "EACCES", "done", as_root, workload=True),
    "bounding set": Case(("status", "CapBnd"), "0" * 16, "00000000a80425fb", host(CapDrop=None)),
    "no new privileges": Case(("become_root",), "10001", "0", suid),
    "read-only root": Case(("write", "/etc/x"), "EROFS", "done", host(ReadonlyRootfs=False), root=True),
    "size of /tmp": Case(("fill", "/tmp", 72 * MIB), "ENOSPC", "done", tmpfs_without("size")),
    "size of /dev/shm": Case(("fill", "/dev/shm", 32 * MIB), "ENOSPC", "done", host(ShmSize=64 * MIB)),
    "nothing runs from /tmp": Case(("run_from", "/tmp"), "EACCES", "done", executable_tmp),
    "flags of /tmp": Case(("flags", "/tmp"), ["NOSUID", "NODEV", "NOEXEC"], [], host(Tmpfs={"/tmp": "exec,suid,dev"})),
    "processes": Case(("forks", 60), "EAGAIN", "done", host(PidsLimit=None)),
    "memory": Case(("touch", MEMORY + MEMORY // 4), "killed", "done", host(Memory=2 * MEMORY, MemorySwap=2 * MEMORY)),
    "an init": Case(("orphans",), "reaped", "zombie", no_init),
    "default route": Case(("route",), "ENETUNREACH", "done", lambda _: None),
    "the engine's socket": Case(
        ("ask_engine", "/var/run/docker.sock"),
        "ENOENT",
        "done",
        host(Binds=["/var/run/docker.sock:/var/run/docker.sock"]),
        root=True,
    ),
    "pid namespace": Case(("opens", f"/proc/{os.getpid()}/stat"), "ENOENT", "done", host(PidMode="host")),
    "ipc namespace": Case(("segment", SEGMENT), "ENOENT", "done", host(IpcMode="host")),
    "cgroup namespace": Case(("names_the_engine",), False, True, host(CgroupnsMode="host")),
    "network namespace": Case(("links",), [], [LAB.bridge], on_the_hosts_network),
    "masked paths": Case(("has_text", "/proc/timer_list"), False, True, host(MaskedPaths=[]), root=True),
    "io_uring": refused_call("io_uring_setup", 1, 0, through="EFAULT", weaken=without_profile),
    "AF_VSOCK": refused_call("socket", 40, 1, 0, through="done", weaken=without_profile),
    "AF_VSOCK in 64 bits": refused_call("socket", 1 << 32 | 40, 1, 0, through="done", weaken=without_profile),
    "TIOCSTI": refused_call("ioctl", 0, 0x5412, 0, through="ENOTTY", weaken=without_profile),
    "TIOCLINUX": refused_call("ioctl", 0, 0x541C, 0, through="ENOTTY", weaken=without_profile),
    "keyctl": refused_call("keyctl", 0, ALL_ONES - 2, 0, through="done", weaken=unconfined),
    "bpf": refused_call("bpf", 9999, 0, 1 << 20, through="E2BIG", weaken=unconfined),
    "userfaultfd": refused_call("userfaultfd", 1, through="done", weaken=unconfined),
    "user namespace": refused_call("unshare", 0x10000000, through="done", weaken=unconfined),
    "user namespace by clone": refused_call("clone", 0x10010000, 0, 0, 0, 0, through="EINVAL", weaken=unconfined),
    "clone3": refused_call("clone3", 0, 0, held="ENOSYS", through="EINVAL", weaken=unconfined),
}


class OpenLab(Lab):
    """A network of Docker's that is not internal."""

    def body(self) -> dict[str, Any]:
        return super().body() | {"internal": False}

    def difference(self, found: dict[str, Any]) -> str | None:
        return super().difference(found | {"Internal": True})


OPEN = OpenLab("sandbox-hard2", "sbxhard1", "10.195.0.0/16", "10.195.1.0/24", "10.195.0.1")


class Weakened(ContainerIsolation):
    """The level with one item taken away."""

    def __init__(self, weaken: Weaken) -> None:
        super().__init__(LAB)
        self.weaken = weaken

    def body(self, spec: SandboxSpec, record: Record, version: tuple[int, ...]) -> Body:
        found = super().body(spec, record, version)
        self.weaken(found)
        return found


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """A network of our own, so that nothing here depends on the lab's rules; and something of the host's to find."""
    before = leaks.snapshot()
    level = ContainerIsolation(LAB)
    level.prepare(SPEC, lambda _: None)
    libc = ctypes.CDLL(None, use_errno=True)
    ipc_creat, ipc_rmid = 0o1000, 0
    segment = libc.shmget(SEGMENT, 4096, ipc_creat | 0o666)
    assert segment >= 0
    yield
    assert libc.shmctl(segment, ipc_rmid, None) == 0
    level.remove_shared()
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def hardened(network: None) -> Iterator[ContainerSandbox]:
    """As the level makes it; all attempts share it."""
    with ExitStack() as undo:
        yield start(ContainerIsolation(LAB), undo)


_used = iter(range(2, 250))


def start(
    level: ContainerIsolation, undo: ExitStack, argv: tuple[str, ...] = SPEC.argv, address: str | None = None
) -> ContainerSandbox:
    record = Record(secrets.token_hex(6), replace(SPEC, argv=argv), address or f"10.197.2.{next(_used)}")
    record.directory.mkdir(parents=True)
    undo.callback(shutil.rmtree, record.directory)
    sandbox = level.create(record.spec, record, undo)
    sandbox.start()
    return sandbox


def command(case: Case) -> tuple[str, ...]:
    function, *arguments = case.attempt
    return ("/usr/bin/python3", "-I", "-S", "-c", PROBE, json.dumps([function, arguments]))


def attempt(case: Case, undo: ExitStack, *weaken: Weaken) -> Any:
    """The answer in a container of its own."""

    def change(body: Body) -> None:
        for one in (case.base, *weaken):
            if one is not None:
                one(body)

    if not case.workload:
        return answer(start(Weakened(change), undo), case)
    sandbox = start(Weakened(change), undo, argv=command(case))
    sandbox.wait(30.0)
    return json.loads(b"".join(sandbox.logs()))


def answer(sandbox: ContainerSandbox, case: Case) -> Any:
    done = sandbox.exec(command(case), timeout=60.0, root=case.root)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_holds(hardened: ContainerSandbox, name: str) -> None:
    case = CASES[name]
    if case.base is None and not case.workload:
        assert answer(hardened, case) == case.held
    else:
        with ExitStack() as undo:
            assert attempt(case, undo) == case.held


@pytest.mark.parametrize("name", CASES)
def test_succeeds_without_the_item(network: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    if name in ("default route", "network namespace"):
        monkeypatch.setattr(docker_network, "remove_default_route", lambda _: None)
    with ExitStack() as undo:
        assert attempt(case, undo, case.weaken) == case.through


def test_the_log_is_capped(network: None) -> None:
    """The keeper's is; dockerd keeps none, where its default would grow with all that is written."""

    def flood(lines: int) -> tuple[str, ...]:
        script = f"import sys\nfor _ in range({lines // 1000}): sys.stdout.write(('x' * 99 + '\\n') * 1000)"
        return ("/usr/bin/python3", "-c", script)

    with ExitStack() as undo:
        sandbox = start(ContainerIsolation(LAB), undo, argv=flood(800_000))
        assert sandbox.keeper is not None
        sandbox.keeper.stop_following()
        assert sandbox.wait(60.0) == 0
        size = sum(one.stat().st_size for one in sandbox.record.directory.glob("log*"))
        assert 30 * MIB < size <= 2 * PART_BYTES
        assert (sandbox.inspect() or {})["LogPath"] == ""
        weakened = start(Weakened(host(LogConfig={"Type": "json-file", "Config": {}})), undo, argv=flood(200_000))
        assert weakened.wait(60.0) == 0
        assert Path((weakened.inspect() or {})["LogPath"]).stat().st_size > 20_000_000


def test_it_stays_ended(network: None) -> None:
    """A restart policy would bring back what was stopped, or died."""
    ends = ("/usr/bin/sleep", "0.2")
    with ExitStack() as undo:
        sandbox = start(ContainerIsolation(LAB), undo, argv=ends)
        assert sandbox.wait(30.0) == 0
        time.sleep(0.5)
        assert not sandbox.state().running
        again = start(Weakened(host(RestartPolicy={"Name": "always"})), undo, argv=ends)
        deadline = time.monotonic() + 20
        while not (found := again.inspect() or {}).get("RestartCount") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found["RestartCount"] >= 1


def test_swap_is_not_added_to_the_memory(network: None, hardened: ContainerSandbox) -> None:
    """The kernel's own word: a host without swap has none to be taken."""

    def swap(sandbox: ContainerSandbox) -> int | None:
        pid = sandbox.state().pid
        group = cgroup.find(sandbox._container, pid or 0)
        assert group is not None
        return group.swap_limit()

    assert swap(hardened) == 0
    with ExitStack() as undo:
        assert (swap(start(Weakened(host(MemorySwap=3 * MEMORY)), undo)) or 0) == 2 * MEMORY


class Beyond:
    """Another network behind the host, with a listener: what a packet that is forwarded would reach."""

    NAME, HOST, FAR = "sbxhardfar", "10.196.255.1", "10.196.255.2"

    def __init__(self) -> None:
        self._ip("netns", "add", self.NAME)
        self._ip("link", "add", self.NAME, "type", "veth", "peer", "name", "eth0", "netns", self.NAME)
        self._ip("addr", "add", f"{self.HOST}/30", "dev", self.NAME)
        self._ip("link", "set", self.NAME, "up")
        self._ip("-n", self.NAME, "addr", "add", f"{self.FAR}/30", "dev", "eth0")
        self._ip("-n", self.NAME, "link", "set", "eth0", "up")
        self._ip("-n", self.NAME, "route", "add", "default", "via", self.HOST)
        back, there = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/run/netns/{self.NAME}"))
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
            self._socket = socket.create_server((self.FAR, 0))
        finally:
            syscalls.setns(back, syscalls.CLONE_NEWNET)
            os.close(back)
            os.close(there)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
        subprocess.run(["ip", "link", "del", self.NAME], check=False, capture_output=True)
        self._ip("netns", "del", self.NAME)


def test_an_internal_network_leads_nowhere(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default route in place, which would hold the attempt by itself."""
    monkeypatch.setattr(docker_network, "remove_default_route", lambda _: None)
    beyond = Beyond()
    try:
        case = Case(("connect", beyond.FAR, beyond.port), None, None, lambda _: None)
        with ExitStack() as undo:
            assert answer(start(ContainerIsolation(LAB), undo), case) != "done"
        level = ContainerIsolation(OPEN)
        level.prepare(SPEC, lambda _: None)
        try:
            with ExitStack() as undo:
                assert answer(start(level, undo, address="10.195.2.2"), case) == "done"
        finally:
            level.remove_shared()
    finally:
        beyond.close()
