"""Test the Docker driver without an engine, and its translation of errors; the rest is tested with a real dockerd."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import host as capability
from sandbox import images
from sandbox.errors import (
    CannotInvokeError,
    CommandNotFoundError,
    EngineError,
    ImageError,
    LimitError,
    SandboxError,
    SpecError,
    UnavailableError,
)
from sandbox.host import Missing
from sandbox.host.docker import Engine, RefusalError
from sandbox.isolation.base import INIT, State
from sandbox.isolation.docker import cgroup as docker_cgroup
from sandbox.isolation.docker import engines, exec, usage
from sandbox.isolation.docker import mounts as docker_mounts
from sandbox.isolation.docker import seccomp as docker_seccomp
from sandbox.isolation.docker.driver import LABEL_ID, ContainerIsolation, GVisorIsolation
from sandbox.isolation.docker.network import Lab
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.kernel import procfs, seccomp
from sandbox.kernel.cgroup import Hierarchy, read_hierarchy
from sandbox.spec import MIB, Mount, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from tests.unit.engine import FakeEngine, listening
from tests.unit.kernel.test_seccomp import interpret
from tools.seccomp import compiler, docker, policy

SPEC = SandboxSpec("web-1", "reactor", "container", ("/bin/server", "--port", "8080"), env=(("A", "b=c d"),))
RECORD = Record("0123456789ab", SPEC, "198.18.2.7")
LOCAL = "/run/test.sock"


# Errors


def test_a_create_that_is_refused_says_what_would_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    level = GVisorIsolation()
    monkeypatch.setattr(capability, "missing_for", lambda _: [Missing("docker.runsc", "r", "register it")])
    found = level._create_refused(RefusalError("x", 400, "Unknown runtime specified runsc"))
    assert isinstance(found, UnavailableError)
    assert found.hint == "register it"
    assert isinstance(level._create_refused(RefusalError("x", 404, "No such image: sandbox:1")), ImageError)
    other = RefusalError("x", 409, "Conflict")
    assert level._create_refused(other) is other


# The request to the engine


def body(level: ContainerIsolation, spec: SandboxSpec = SPEC, version: tuple[int, ...] = (1, 41)) -> dict[str, Any]:
    level._image = "sandbox:abc"
    return level.body(spec, RECORD, version)


def test_the_create_call_asks_for_the_spec() -> None:
    found = body(ContainerIsolation(), replace(SPEC, cpus=0.25, memory=64 * MIB, pids_limit=99, cpuset="0-1"))
    assert found["Entrypoint"] + found["Cmd"] == [*INIT, *SPEC.argv]
    assert found["User"] == "10001:10001"
    assert found["Hostname"] == "web-1"
    assert found["Labels"][LABEL_ID] == RECORD.id
    assert sorted(entry.partition("=")[0] for entry in found["Env"]) == ["A", "HOME", "HOSTNAME", "LANG", "PATH"]
    assert "A=b=c d" in found["Env"]
    assert "HOSTNAME" in found["Env"]  # without a value, which removes the engine's own
    named = body(ContainerIsolation(), replace(SPEC, env=(("HOSTNAME", "x"),)))["Env"]
    assert "HOSTNAME=x" in named
    assert "HOSTNAME" not in named
    host = found["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (250_000_000, 64 * MIB, 64 * MIB)
    assert (host["PidsLimit"], host["CpusetCpus"]) == (99, "0-1")
    assert found["NetworkingConfig"]["EndpointsConfig"]["sandbox-lab"]["IPAMConfig"] == {"IPv4Address": "198.18.2.7"}


def test_the_walls_are_asked_for() -> None:
    host = body(ContainerIsolation())["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges", f"seccomp={docker_seccomp.profile()}"]
    assert host["ReadonlyRootfs"] is True
    assert host["RestartPolicy"] == {"Name": "no"}
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert host["LogConfig"] == {"Type": "none"}
    assert host["Dns"] == ["127.0.0.1"]
    assert "Runtime" not in host
    assert host["Mounts"] == []
    assert not {"Binds", "Privileged", "CapAdd", "Devices", "PortBindings"} & set(host)
    assert set(host["Tmpfs"]) == {"/tmp", "/run"}
    for path, size in (("/tmp", 64 * MIB), ("/run", MIB)):
        assert {"nosuid", "nodev", "noexec", f"size={size}"} <= set(host["Tmpfs"][path].split(","))
    assert host["Tmpfs"]["/tmp"].endswith("mode=1777")


def test_the_hardware_address_is_where_the_version_wants_it() -> None:
    old, new = body(ContainerIsolation()), body(ContainerIsolation(), version=(1, 44))
    assert old["MacAddress"] == RECORD.mac
    assert "MacAddress" not in new
    assert new["NetworkingConfig"]["EndpointsConfig"]["sandbox-lab"]["MacAddress"] == RECORD.mac


def test_gvisor_holds_the_processes_inside() -> None:
    host = body(GVisorIsolation())["HostConfig"]
    assert host["Runtime"] == "runsc"
    assert host["Ulimits"] == [{"Name": "nproc", "Soft": 128, "Hard": 128}]
    assert host["PidsLimit"] > 1000  # threads of the host, not processes inside
    GVisorIsolation().check(SPEC)
    with pytest.raises(SpecError, match=r"--memory 32m.*at least 48m"):
        GVisorIsolation().check(replace(SPEC, memory=32 * MIB))


def test_no_image_no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find", lambda _: None)
    with pytest.raises(ImageError, match="images build"):
        ContainerIsolation().body(SPEC, RECORD, (1, 41))


# The network


def network(lab: Lab) -> dict[str, Any]:
    asked = lab.body()
    return {
        "Driver": asked["driver"],
        "Internal": asked["internal"],
        "IPAM": asked["ipam"],
        "Options": asked["options"],
        "Containers": {},
    }


def test_our_network_is_known_again() -> None:
    lab = Lab()
    assert lab.difference(network(lab)) is None
    assert lab.difference(network(replace(lab, subnet="10.0.0.0/8"))) == "its subnet is 10.0.0.0/8, not 198.18.0.0/16"
    assert "bridge" in (lab.difference(network(lab) | {"Options": None}) or "")
    assert "internal" in (lab.difference(network(lab) | {"Internal": False}) or "")
    assert "subnet" in (lab.difference(network(lab) | {"IPAM": {"Config": None}}) or "")


# Commands


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('exec: "x": executable file not found in $PATH: unknown', CommandNotFoundError),
        ('exec: "/x": stat /x: no such file or directory: unknown', CommandNotFoundError),
        ("failed to load /etc/passwd: permission denied: unknown", CannotInvokeError),
        ('exec: "/x": exec format error: unknown', CannotInvokeError),
        ("the disk is on fire", None),
    ],
)
def test_a_runtimes_words_are_understood(words: str, kind: type[SandboxError] | None) -> None:
    found = exec.refused("x", words)
    assert found is None if kind is None else isinstance(found, kind)


def start(argv: list[str], **more: Any) -> exec.ContainerBackend:
    more = {"engine": Engine(LOCAL), "has_input": False, "alive": lambda: True, **more}
    return exec.start(container="c", argv=argv, user="0:0", kernel_shared=True, **more)


def test_a_command_of_no_words() -> None:
    with pytest.raises(CommandNotFoundError):
        start([])


def frame(output: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", output, len(data)) + data


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    with listening(tmp_path / "s") as found:
        found.answers["POST /containers/c/exec"] = (201, {"Id": "e"})
        found.answers["GET /exec/e/json"] = (200, {"Running": False, "ExitCode": 3, "Pid": 0})
        yield found


def test_a_commands_output_begins_after_the_first_line(fake: FakeEngine) -> None:
    # dockerd copies the streams separately: stderr may arrive before the line which says that the command has begun.
    said = frame(2, b"early") + frame(1, b"star") + frame(1, b"ted 7\nout") + frame(2, b"err") + frame(1, b"\x00\xff")
    fake.answers["POST /exec/e/start"] = (101, said)
    backend = start(["true"], engine=Engine(fake.path))
    pieces = []
    while (piece := backend.read())[1]:
        pieces.append(piece)
    assert pieces == [(2, b"early"), (1, b"out"), (2, b"err"), (1, b"\x00\xff")]
    assert backend.exit_code(None) == 3
    backend.close()


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (frame(1, b"127\n"), CommandNotFoundError, "no command 'true' inside"),
        (frame(1, b"126\n"), CannotInvokeError, "cannot be executed: Permission denied"),
        (frame(1, b"OCI runtime exec failed: chdir to cwd"), CannotInvokeError, "working directory"),
        (frame(2, b"out of \xff luck"), EngineError, "could not be run: out of"),
        (b"", EngineError, "could not be run"),
    ],
)
def test_a_command_that_does_not_begin(fake: FakeEngine, said: bytes, kind: type[SandboxError], words: str) -> None:
    fake.answers["POST /exec/e/start"] = (101, said)
    with pytest.raises(kind, match=words):
        start(["true"], engine=Engine(fake.path))


def test_a_command_in_a_sandbox_that_has_ended(fake: FakeEngine) -> None:
    fake.answers["POST /exec/e/start"] = (101, b"")
    with pytest.raises(EngineError, match="ended before the command began"):
        start(["true"], engine=Engine(fake.path), alive=lambda: False)
    fake.answers["POST /exec/e/start"] = (101, frame(1, b"started 7\n"))
    lives = [True]
    backend = start(["true"], engine=Engine(fake.path), alive=lambda: lives[0])
    for answer in ({"Running": True, "ExitCode": None, "Pid": 0}, {"Running": False, "ExitCode": 137, "Pid": 0}):
        fake.answers["GET /exec/e/json"] = (200, answer)
        lives[0] = False
        with pytest.raises(EngineError, match="the sandbox ended while"):
            backend.exit_code(None)
        lives[0] = True
        if answer["Running"]:
            with pytest.raises(TimeoutError):
                backend.exit_code(0.05)
        else:
            assert backend.exit_code(None) == 137
    backend.close()


# Control groups

HYBRID = """\
12:pids:/docker/abc
5:cpu,cpuacct:/docker/abc
4:memory:/docker/abc
1:name=systemd:/docker/abc
0::/system
"""


def test_the_places_of_a_process() -> None:
    places = procfs.groups(HYBRID)
    assert places["pids"] == places["cpu"] == places["cpuacct"] == places["name=systemd"] == "/docker/abc"
    assert places[""] == "/system"


def test_a_process_that_is_not_the_containers(tmp_path: Path) -> None:
    assert docker_cgroup.find("f" * 64, 1) is None
    assert docker_cgroup.find("f" * 64, 2**22 + 1) is None


def write(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def test_limits_of_v2(tmp_path: Path) -> None:
    write(
        tmp_path / "system.slice/docker-abc.scope", cpu__max="50000 100000\n", memory__max="67108864\n", pids__max="9\n"
    )
    where = Hierarchy("v2", {}, tmp_path, frozenset({"cpu", "memory", "pids"}))
    group = docker_cgroup.ContainerGroup("abc", {"": "/system.slice/docker-abc.scope"}, where)
    assert group.read_limits() == (0.5, 64 * MIB, 9)


def test_limits_of_v1(tmp_path: Path) -> None:
    mounts = "".join(f"cgroup {tmp_path}/{name} cgroup rw,{name} 0 0\n" for name in ("cpu", "memory", "pids"))
    write(tmp_path / "cpu/docker/abc", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "memory/docker/abc", memory__limit_in_bytes="67108864\n")
    write(tmp_path / "pids/docker/abc", pids__max="max\n")
    group = docker_cgroup.ContainerGroup("abc", procfs.groups(HYBRID), read_hierarchy(mounts))
    assert group.read_limits() == (None, 64 * MIB, None)


# Use of an inspect


def sandbox_with(monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | None) -> ContainerSandbox:
    sandbox = ContainerSandbox(replace(RECORD), Engine(LOCAL))
    monkeypatch.setattr(sandbox, "inspect", lambda: found)
    return sandbox


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (None, State(False)),
        ({"Status": "created", "Running": False, "ExitCode": 0, "Pid": 0}, State(False)),
        ({"Status": "running", "Running": True, "Paused": False, "ExitCode": 0, "Pid": 7}, State(True, None, 7)),
        ({"Status": "paused", "Running": True, "Paused": True, "ExitCode": 0, "Pid": 7}, State(True, None, 7, True)),
        ({"Status": "exited", "Running": False, "ExitCode": 137, "Pid": 0}, State(False, 137)),
        ({"Status": "dead", "Running": False, "ExitCode": 0, "Pid": 0}, State(False, 0)),
    ],
)
def test_states(monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any] | None, state: State) -> None:
    assert sandbox_with(monkeypatch, None if raw is None else {"State": raw}).state() == state


def test_limits_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"NanoCpus": 10**9, "Memory": 64 * MIB, "PidsLimit": 9, "Tmpfs": {"/tmp": f"rw,size={MIB},mode=1777"}}
    found = {"Id": "abc", "State": {"Pid": 7, "Running": True}, "HostConfig": config}
    sandbox = sandbox_with(monkeypatch, found)
    disk = [MIB]
    monkeypatch.setattr(usage, "disk_size", lambda _: disk[0])
    read: list[Any] = [1.0, 64 * MIB, 9]
    group = SimpleNamespace(read_limits=lambda: tuple(read), where=SimpleNamespace(mode="v2"))
    monkeypatch.setattr(docker_cgroup, "find", lambda *_: group)
    assert sandbox.limits().pids == 9
    for place, value in ((0, 2.0), (1, None), (2, 8)):
        read[:] = [1.0, 64 * MIB, 9]
        read[place] = value
        with pytest.raises(LimitError, match="the kernel enforces"):
            sandbox.limits()
    read[:] = [1.0, 64 * MIB, 9]
    assert sandbox.limits().disk == MIB
    disk[0] = 2 * MIB
    with pytest.raises(LimitError, match="disk"):
        sandbox.limits()


def test_a_dead_init_is_dead_though_no_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = sandbox_with(monkeypatch, None)

    def down() -> None:
        raise UnavailableError("no engine")

    monkeypatch.setattr(sandbox, "inspect", down)
    with pytest.raises(UnavailableError):
        sandbox.state()
    sandbox.record.process = ProcessId(2**22 + 1, 1, "another boot")
    assert sandbox.state() == State(running=False)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGSEGV, signal.SIGCHLD])
def test_what_the_init_keeps_is_refused(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    with pytest.raises(EngineError, match="does not forward"):
        sandbox_with(monkeypatch, None).kill(number)


# The filter


def verdict(name: str, arguments: tuple[int, ...]) -> int | str:
    """Return the profile's verdict: an errno, or "allow". Rules are joined by "or"; see libseccomp's manual."""
    found: set[int | str] = set()
    for rule in json.loads(docker_seccomp.profile())["syscalls"]:
        if name not in rule["names"]:
            continue
        checks = rule.get("args", [])
        assert len({one["index"] for one in checks}) == len(checks), "an argument is looked at once per rule"
        assert all(one["op"] == "SCMP_CMP_MASKED_EQ" for one in checks)
        if all(arguments[one["index"]] & one["value"] == one["valueTwo"] for one in checks):
            found.add("allow" if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"])
    assert len(found) <= 1, name
    return found.pop() if found else errno.EPERM


VALUES = (0, 1, 2, 10, 16, 17, 38, 40, 63, 0x5401, 0x5411, 0x5412, 0x5413, 0x541B, 0x541C, 0x541D, 0x15412, 0x80005412)
WIDE = tuple(1 << 32 | value for value in VALUES)
FLAGS = (policy.NAMESPACE_FLAGS, *(1 << bit for bit in range(64)), *policy.PERSONALITIES)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_profile_says_what_the_namespace_levels_filter_says(machine: str) -> None:
    arch, numbers = compiler.MACHINES[machine]
    program = seccomp.build(machine)
    for name, number in numbers.items():
        values = (*VALUES, *WIDE, *FLAGS) if name in compiler.CHECKED else VALUES[:2]
        for value in values:
            ours, _ = interpret(program, number, arch, (value, value))
            theirs = verdict(name, (value, value))
            assert ours == (compiler.ALLOW if theirs == "allow" else 0x00050000 | int(theirs)), (name, value)


def test_blocks_cover_all_but_what_is_refused() -> None:
    for refused in ((), (0,), (2**32 - 1,), (0x5412, 0x541C), (6, 7)):
        blocks = docker.blocks_without(refused)
        assert sum(2**32 - mask for mask, _ in blocks) == 2**32 - len(refused)  # none lies in another, so: all
        assert not [one for one in refused for mask, value in blocks if one & mask == value]


# Mounts


def test_mounts_are_bound_one_by_one(tmp_path: Path) -> None:
    spec = replace(SPEC, mounts=(Mount(str(tmp_path), "/data", read_only=True),))
    assert body(ContainerIsolation(), spec)["HostConfig"]["Mounts"] == [
        {
            "Type": "bind",
            "Source": str(tmp_path),
            "Target": "/data",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "private", "NonRecursive": True},
        }
    ]
    app = docker_mounts.mounts(replace(SPEC, app=True), RECORD)
    assert app == (Mount(str(RECORD.app_path), "/app", read_only=True),)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    stat = (tmp_path / "real" / "below").stat()
    assert docker_mounts.identity(str(tmp_path / "real" / "below")) == (stat.st_dev, stat.st_ino)
    for path in ("link", "link/below", "nothing"):
        with pytest.raises(SpecError, match="cannot be mounted"):
            docker_mounts.identity(str(tmp_path / path))


def test_what_is_mounted_is_compared_with_what_was_meant(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    inside = replace(
        SPEC, mounts=(Mount(str(source), str(source), read_only=True),)
    )  # our own root stands in for the container's
    noted = docker_mounts.identities(inside, RECORD)
    docker_mounts.verify(inside, RECORD, noted, os.getpid())
    docker_mounts.verify_sources(noted)
    with pytest.raises(docker_mounts.UnseenError, match="cannot be seen"):
        docker_mounts.verify(inside, RECORD, noted, 2**22 + 1)  # no pid is that high (proc_sys_kernel(5), pid_max)
    source.rename(tmp_path / "before")
    with pytest.raises(EngineError, match="replaced"):
        docker_mounts.verify_sources(noted)
    source.mkdir()
    with pytest.raises(EngineError, match="its path was changed while"):
        docker_mounts.verify(inside, RECORD, noted, os.getpid())
    with pytest.raises(EngineError, match="replaced"):
        docker_mounts.verify_sources(noted)


V1_IO = "8:0 Read 4096\n8:0 Write 512\n8:16 Read 100\n8:16 Write 0\nTotal 4708\n"


def test_block_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "docker/abc", blkio__throttle__io_service_bytes_recursive=V1_IO)
    monkeypatch.setattr(docker_cgroup, "_blkio_root", lambda: tmp_path)
    group = docker_cgroup.ContainerGroup("abc", {"blkio": "/docker/abc"}, Hierarchy("v1", {}, None, frozenset()))
    assert group.transferred() == (4196, 512)
    write(tmp_path / "docker/abc", io__stat="8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n")
    v2 = Hierarchy("v2", {}, tmp_path, frozenset({"io"}))
    assert docker_cgroup.ContainerGroup("abc", {"": "/docker/abc"}, v2).transferred() == (11, 22)
    assert docker_cgroup.ContainerGroup("abc", {"": "/none"}, v2).transferred() == (None, None)


def test_a_frozen_group(tmp_path: Path) -> None:
    write(tmp_path / "docker/abc", freezer__state="FROZEN\n", cgroup__freeze="0\n")
    v1 = Hierarchy("v1", {"freezer": tmp_path}, None, frozenset())
    assert docker_cgroup.ContainerGroup("abc", {"freezer": "/docker/abc"}, v1).is_frozen() is True
    v2 = Hierarchy("v2", {}, tmp_path, frozenset())
    assert docker_cgroup.ContainerGroup("abc", {"": "/docker/abc"}, v2).is_frozen() is False
    assert docker_cgroup.ContainerGroup("abc", {"": "/none"}, v2).is_frozen() is None


# Engines that were used


def test_engines_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    assert engines.noted("net") == []
    for one in (LOCAL, "/run/other.sock", LOCAL):
        engines.note("net", one)
    assert engines.noted("net") == [LOCAL, "/run/other.sock"]
    assert engines.noted("other") == []
    engines.forget("net", "/run/other.sock")
    engines.forget("net", LOCAL)
    assert engines.noted("net") == []
    assert not list((tmp_path / "host").iterdir())
    for text in ("{", "{}", "7", '[{"host": "tcp://192.0.2.1:2375"}, "relative"]'):
        (tmp_path / "host" / "engines-of-net.json").write_text(text)
        assert engines.noted("net") == []


def test_a_cleanup_asks_the_current_engine_and_those_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    level = ContainerIsolation(Lab("net"))
    for one in (LOCAL, "/run/away.sock"):
        engines.note("net", one)
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/current.sock")
    asked: list[str] = []

    def act(engine: Engine, *_: Any, **__: Any) -> list[str]:
        asked.append(engine.socket)
        if engine.socket == "/run/away.sock":
            raise UnavailableError("away")
        return [engine.socket]

    monkeypatch.setattr(level, "_prune", act)
    assert level.prune((), dry_run=True) == ["/run/current.sock", LOCAL]
    assert asked == ["/run/current.sock", LOCAL, "/run/away.sock"]
    asked.clear()
    monkeypatch.setattr("sandbox.isolation.docker.network.remove", act)
    monkeypatch.setattr("sandbox.isolation.docker.network.exists", lambda *_: False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    with pytest.raises(UnavailableError, match="must be on this host"):  # the one that is meant now must be usable
        level.prune((), dry_run=True)
    assert level.remove_shared() == [LOCAL]
    assert engines.noted("net") == ["/run/away.sock"]
