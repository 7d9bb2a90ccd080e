"""`container` and `gvisor` on a real dockerd, through the driver alone: no store, a Docker network of our own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import (
    CannotInvokeError,
    CommandNotFoundError,
    EngineError,
    ImageError,
    SandboxError,
    UnavailableError,
)
from sandbox.isolation.base import State, Stats, WindowSize, environment
from sandbox.isolation.docker import sandbox as docker_sandbox
from sandbox.isolation.docker.driver import ContainerIsolation, GVisorIsolation
from sandbox.isolation.docker.network import Lab
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.spec import MIB, SANDBOX_UID, Mount, SandboxSpec
from sandbox.state.record import Record

LAB = Lab(
    name="sandbox-test",
    bridge="sbxtest0",
    subnet="198.19.0.0/16",
    dynamic_range="198.19.1.0/24",
    gateway="198.19.0.1",
)
OTHER = Lab("sandbox-test2", "sbxtest1", "10.198.0.0/16", "10.198.1.0/24", "10.198.0.1")
SLEEP = ("/usr/bin/sleep", "600")
LEVELS = [
    pytest.param(ContainerIsolation, marks=pytest.mark.level("container"), id="container"),
    pytest.param(GVisorIsolation, marks=pytest.mark.level("gvisor"), id="gvisor"),
]

Make = Callable[..., ContainerSandbox]


def quiet(_: str) -> None:
    """Progress that nobody watches."""


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def spec_of(level: str, argv: tuple[str, ...] = SLEEP, **changes: Any) -> SandboxSpec:
    return replace(SandboxSpec(name="web-1", workload="test", isolation=level, argv=argv), **changes)


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[ContainerIsolation]:
    driver: ContainerIsolation = request.param(LAB)
    driver.prepare(spec_of(driver.name), quiet)
    yield driver
    assert driver.remove_shared() == [f"docker network {LAB.name}"]
    assert driver.remove_shared() == []
    assert LAB.bridge not in subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def make(level: ContainerIsolation) -> Iterator[Make]:
    with ExitStack() as undo:
        used = iter(range(2, 250))

        def make(argv: tuple[str, ...] = SLEEP, *, start: bool = True, **changes: Any) -> ContainerSandbox:
            spec = spec_of(level.name, argv, **changes)
            record = Record(secrets.token_hex(6), spec, f"198.19.2.{next(used)}")
            record.directory.mkdir(parents=True)
            undo.callback(shutil.rmtree, record.directory)
            sandbox = level.create(spec, record, undo)
            if start:
                sandbox.start()
            return sandbox

        yield make


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def output(sandbox: ContainerSandbox) -> str:
    return b"".join(sandbox.logs()).decode()


def test_a_whole_life(make: Make, level: ContainerIsolation) -> None:
    sandbox = make(start=False)
    assert sandbox.state() == State(running=False)
    assert sandbox.stats() == Stats(None, None, None)
    assert sandbox.wait(1.0) is None
    sandbox.boot(time.monotonic() + 1)
    sandbox.start()

    state = sandbox.state()
    assert state.running
    assert sandbox.record.process is not None
    assert state.pid == sandbox.record.process.pid
    kept = sandbox.record.to_json() | {"address": "198.18.2.1"}  # a record has an address of the lab's
    found = level.adopt(Record.from_json(json.loads(json.dumps(kept))))
    assert found.state() == state

    with pytest.raises(TimeoutError, match="still runs"):
        sandbox.wait(0.05)
    assert found.stop(5.0) == 143
    assert sandbox.wait(1.0) == 143
    assert sandbox.state() == State(running=False, exit_code=143)
    assert sandbox.stop(1.0) == 143

    found.remove()
    sandbox.remove()
    assert sandbox.state() == State(running=False)
    assert sandbox.stop(1.0) is None
    assert output(sandbox) == ""
    with pytest.raises(EngineError, match="gone"):
        sandbox.limits()


def test_limits_are_read_back(make: Make, level: ContainerIsolation) -> None:
    sandbox = make(start=False, cpus=0.5, memory=96 * MIB, pids_limit=50, cpuset="0")
    sandbox.start()
    limits = sandbox.limits()
    assert (limits.cpus, limits.memory, limits.pids) == (0.5, 96 * MIB, 50)
    assert "cgroup" in limits.source
    stats = sandbox.stats()
    assert stats.cpu_seconds is not None
    assert stats.memory is not None
    assert stats.cpu_seconds > 0
    assert 0 < stats.memory <= 96 * MIB
    # Host threads of gVisor's kernel are not the sandbox's processes.
    assert stats.pids == (None if level.name == "gvisor" else 2)
    assert sandbox.exec(shell("nproc")).stdout.strip() == b"1" or level.name == "gvisor"


def test_the_environment_is_the_specs_and_nothing_else(make: Make) -> None:
    sandbox = make(("/usr/bin/env",), env=(("GREETING", "a b=c"),))
    assert sandbox.wait(30.0) == 0
    assert dict(line.split("=", 1) for line in output(sandbox).splitlines()) == environment(sandbox.record.spec)


def test_the_walls(make: Make, level: ContainerIsolation) -> None:
    sandbox = make()
    status = sandbox.exec(["/bin/cat", "/proc/self/status"]).stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    if level.name == "container":
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
    script = (
        "id -u; id -g; hostname; cat /proc/1/comm; "
        "for d in / /etc /opt /var /home /run; do touch $d/x 2>/dev/null && echo WRITABLE $d; done; "
        "for d in /tmp /var/tmp; do cp /bin/true $d/x || echo FULL $d; "
        "$d/x 2>/dev/null && echo RUNS $d; done; "
        "ls /var/run/docker.sock 2>/dev/null; true"
    )
    found = sandbox.exec(shell(script))
    assert found.stdout.decode().split() == ["10001", "10001", "web-1", "tini"], found
    assert sandbox.exec(shell("id -u; grep CapEff /proc/self/status"), root=True).stdout.split() == [
        b"0",
        b"CapEff:",
        b"0" * 16,
    ]


def test_a_tmpfs_holds_its_size(make: Make) -> None:
    sandbox = make()
    found = sandbox.exec(shell("head -c 80000000 /dev/zero > /var/tmp/x; wc -c < /var/tmp/x"), timeout=60.0)
    assert int(found.stdout) <= 64 * MIB
    assert sandbox.state().running


def test_exec_gives_code_and_both_outputs(make: Make) -> None:
    sandbox = make()
    for timeout in (None, 20.0):
        found = sandbox.exec(shell("echo out; echo err >&2; exit 7"), timeout=timeout)
        assert (found.exit_code, found.stdout, found.stderr) == (7, b"out\n", b"err\n")
        assert sandbox.exec(shell("kill -9 $$"), timeout=timeout).exit_code == 137
        assert sandbox.exec(shell("exit 127"), timeout=timeout).exit_code == 127
        with pytest.raises(CommandNotFoundError, match="'nope'"):
            sandbox.exec(["nope"], timeout=timeout)
        with pytest.raises(CommandNotFoundError, match="'/nope'"):
            sandbox.exec(["/nope", "x"], timeout=timeout)
        with pytest.raises(CannotInvokeError, match=r"'/etc/passwd'.*ermission denied"):
            sandbox.exec(["/etc/passwd"], timeout=timeout)
    blob = sandbox.exec(shell("head -c 300000 /dev/zero"))
    assert blob.stdout == bytes(300000)


def test_exec_in_one_that_is_not_running(make: Make) -> None:
    sandbox = make(start=False)
    with pytest.raises(EngineError, match="not running"):
        sandbox.exec(["/bin/true"])
    sandbox.remove()
    with pytest.raises(EngineError, match="o such container"):
        sandbox.exec(["/bin/true"])


def test_a_command_that_takes_too_long_is_killed_with_its_children(make: Make) -> None:
    sandbox = make()
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.5 s"):
        sandbox.exec(shell("sleep 301 & sleep 302"), timeout=0.5)
    assert time.monotonic() - begin < 5
    found = sandbox.exec(shell("cat /proc/[0-9]*/comm")).stdout.decode().split()
    assert found.count("sleep") == 1, found  # the workload itself


class Pipes:
    """Three pipes for an attached command, with our ends."""

    def __init__(self) -> None:
        self.stdin, self.typing = os.pipe()
        self.reading, self.stdout = os.pipe()
        self._open = {self.stdin, self.typing, self.reading, self.stdout}

    def close(self, *ends: int) -> None:
        """Close these ends, or all; a number that is closed may be another's by now."""
        for end in ends or tuple(self._open):
            if end in self._open:
                self._open.discard(end)
                os.close(end)

    def rest(self) -> bytes:
        """What was written, once nobody writes any more."""
        self.close(self.stdout)
        found = b""
        while piece := os.read(self.reading, 65536):
            found += piece
        return found


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    made.close()


def test_no_byte_of_an_attached_commands_is_lost(make: Make, level: ContainerIsolation) -> None:
    sandbox = make()
    for terminal in (None, WindowSize(24, 80)):
        for _ in range(20 if level.name == "container" else 4):
            pipes = Pipes()
            handle = sandbox.attach(
                shell("printf 'first '; cat"), stdin=pipes.stdin, stdout=pipes.stdout, stderr=2, terminal=terminal
            )
            os.write(pipes.typing, b"second\n" if terminal is None else b"second\n\x04")
            pipes.close(pipes.typing)
            assert handle.wait() == 0
            handle.close()
            said = pipes.rest().replace(b"\r\n", b"\n")
            pipes.close()
            assert said == b"first second\n" or (terminal and sorted(said.split()) == [b"first", b"second", b"second"])


def test_keys_of_the_engines_own_reach_the_command(make: Make, pipes: Pipes) -> None:
    """dockerd takes Ctrl-P Ctrl-Q for itself, by its default, and leaves the command."""
    sandbox = make()
    handle = sandbox.attach(
        shell("stty raw -echo; echo ready; head -c 3 | od -An -tx1"),
        stdin=pipes.stdin,
        stdout=pipes.stdout,
        stderr=2,
        terminal=WindowSize(24, 80),
    )
    assert os.read(pipes.reading, 100).startswith(b"ready")
    os.write(pipes.typing, b"\x10\x11\x10")
    assert handle.wait() == 0
    handle.close()
    assert b"10 11 10" in pipes.rest()


def test_a_reader_that_goes_ends_the_command(make: Make, pipes: Pipes) -> None:
    handle = make().attach(["/usr/bin/yes"], stdin=None, stdout=pipes.stdout, stderr=2)
    assert os.read(pipes.reading, 2) == b"y\n"
    pipes.close(pipes.reading)
    assert handle.wait() == 141
    handle.close()


def test_a_command_is_ended_with_what_it_started(make: Make, pipes: Pipes) -> None:
    sandbox = make(pids_limit=16)
    script = "sleep 301 & sleep 302 & echo begun; trap '' TERM HUP INT; sleep 303; sleep 304"
    handle = sandbox.attach(shell(script), stdin=None, stdout=pipes.stdout, stderr=2)
    assert os.read(pipes.reading, 100) == b"begun\n"
    handle.close()
    handle.close()
    found = sandbox.exec(shell("cat /proc/[0-9]*/comm")).stdout.decode().split()
    assert found.count("sleep") == 1, found  # the workload itself


@pytest.mark.level("container")
def test_a_command_is_ended_where_nothing_can_be_started(pipes: Pipes) -> None:
    """No process is left for a command that would kill it from inside; see pids(7), EAGAIN."""
    script = "import os,time\nos.write(1,b'begun')\ntry:\n while os.fork(): pass\nexcept OSError: pass\ntime.sleep(600)"
    level = ContainerIsolation(OTHER)
    level.prepare(spec_of("container"), quiet)
    with ExitStack() as undo:
        record = Record(secrets.token_hex(6), spec_of("container", pids_limit=16), "10.198.2.9")
        record.directory.mkdir(parents=True)
        undo.callback(shutil.rmtree, record.directory)
        sandbox = level.create(record.spec, record, undo)
        sandbox.start()
        fork = ["/usr/bin/python3", "-I", "-S", "-c", script]
        handle = sandbox.attach(fork, stdin=None, stdout=pipes.stdout, stderr=2)
        assert os.read(pipes.reading, 100).startswith(b"begun")
        time.sleep(0.5)
        handle.close()
        assert sandbox.exec(shell("cat /proc/[0-9]*/comm"), timeout=20.0).stdout.split().count(b"python3") == 0
    level.remove_shared()


def test_an_attached_command_whose_sandbox_dies(make: Make, pipes: Pipes) -> None:
    sandbox = make()
    handle = sandbox.attach(["/bin/cat"], stdin=pipes.stdin, stdout=pipes.stdout, stderr=2)
    sandbox.kill(9)
    with pytest.raises(EngineError, match="sandbox ended"):
        handle.wait()
    handle.close()


def test_a_directory_to_run_in_that_is_not_there(make: Make, pipes: Pipes) -> None:
    with pytest.raises(CannotInvokeError, match="working directory"):
        make().attach(["/bin/true"], stdin=None, stdout=pipes.stdout, stderr=2, workdir="/nope")


def test_a_paused_one_takes_what_comes(make: Make, level: ContainerIsolation) -> None:
    script = "trap 'echo noted' USR1; echo ready; while :; do sleep 0.05; done"
    sandbox = make(shell(script))
    assert next(sandbox.logs(follow=True)) == b"ready\n"
    sandbox.pause()
    with pytest.raises(EngineError, match="paused"):
        sandbox.exec(["/bin/true"])
    if level.name == "container":
        sandbox.kill(10)  # waits for the end of the pause, where dockerd would end it
        assert sandbox.state().paused
        sandbox.unpause()
        deadline = time.monotonic() + 10
        while "noted" not in output(sandbox) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "noted" in output(sandbox)
    else:
        with pytest.raises(EngineError, match="is paused"):
            sandbox.kill(10)
    sandbox.pause()
    begin = time.monotonic()
    sandbox.remove()
    assert time.monotonic() - begin < 5
    with pytest.raises(EngineError, match="not running"):
        sandbox.pause()


def test_mounts_are_what_was_asked_for(make: Make, tmp_path: Path) -> None:
    for name in ("shown", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "word").write_text(name)
    mount = Mount(str(tmp_path / "shown"), "/data/shown")
    sandbox = make(mounts=(mount,))
    assert sandbox.exec(["/bin/cat", "/data/shown/word"]).stdout == b"shown"
    engine = sandbox.inspection().engine
    assert engine is not None
    assert [(one.source, one.target, one.propagation) for one in engine.mounts] == [
        (mount.source, mount.target, "private")
    ]
    swapped = make(start=False, mounts=(mount,))
    # What somebody could do between the look at the path and the engine's: put another directory in its place.
    (tmp_path / "shown").rename(tmp_path / "away")
    (tmp_path / "shown").symlink_to(tmp_path / "other")
    with pytest.raises(SandboxError, match=r"symbolic|path was changed|was replaced"):
        swapped.start()


def test_a_mount_below_a_source_is_not_shown(make: Make, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(below)], check=True)
    try:
        (below / "word").write_text("x")
        below.chmod(0o777)
        sandbox = make(mounts=(Mount(str(tmp_path), "/data", read_only=True),))
        found = sandbox.exec(shell("cat /data/below/word; touch /data/below/new; echo done"))
        assert found.stdout == b"done\n"
    finally:
        subprocess.run(["umount", str(below)], check=True)


def test_there_is_no_default_route(make: Make) -> None:
    sandbox = make()
    assert sandbox.inspection().network.routes == ["198.19.0.0/16 dev eth0"]


def test_what_is_in_force(make: Make, level: ContainerIsolation) -> None:
    found = make().inspection()
    engine, process = found.engine, found.process
    assert engine is not None
    assert process is not None
    assert found.user.uid == SANDBOX_UID
    assert found.capabilities.effective == []
    assert engine.seccomp_profile == "sandbox"
    assert engine.restart_policy == "no"
    assert engine.published_ports is None
    assert engine.swap == 0
    assert engine.log_driver == "none"  # the keeper writes it
    assert engine.root_read_only is True
    assert process.seccomp.mode == "filter"
    own = {kind for kind, one in asdict(process.namespaces).items() if one["owner"] == "sandbox"}
    assert own >= {"ipc", "mnt", "net", "uts"}
    assert found.root is not None
    assert found.root.read_only
    assert found.kernel.shared is (level.name == "container")
    if found.kernel.shared:
        # A hybrid host has its cgroup namespace too.
        assert own == {"cgroup", "ipc", "mnt", "net", "pid", "uts"}
        assert found.user == process.user
        assert found.user.no_new_privileges is True
        assert found.capabilities == process.capabilities
        assert found.seccomp == process.seccomp
        assert found.namespaces == process.namespaces
    else:
        assert found.kernel.release != os.uname().release
        assert found.seccomp.mode == "disabled", "the filter is around gVisor's kernel"
        assert found.namespaces.net.owner == "guest"


def test_the_engine_is_found_again_by_its_address(
    make: Make, level: ContainerIsolation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Made through one address; found by later commands whatever DOCKER_HOST says then."""
    other = tmp_path / "other.sock"
    other.symlink_to("/var/run/docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{other}")
    sandbox = make()
    assert sandbox.engine.socket == str(other)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    found = type(level)(LAB).adopt(replace(sandbox.record))
    assert found.state().running
    assert found.exec(["/bin/echo", "x"]).stdout == b"x\n"
    assert found.limits().memory == sandbox.record.spec.memory
    found.remove()
    assert found.inspect() is None


@pytest.mark.level("container")
def test_what_another_engine_has_is_removed_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its network goes too, though DOCKER_HOST says another engine by then."""
    other = tmp_path / "other.sock"
    other.symlink_to("/var/run/docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{other}")
    ContainerIsolation(OTHER).prepare(spec_of("container"), quiet)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert ContainerIsolation(OTHER).remove_shared() == [f"docker network {OTHER.name}"]
    assert ContainerIsolation(OTHER).remove_shared() == []


@pytest.mark.level("container")
def test_ended_from_inside(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gVisor's processes are to this host: its commands are killed by a command of our own inside."""
    monkeypatch.setattr(docker_sandbox.ContainerSandbox, "kernel_shared", False)
    level = ContainerIsolation(OTHER)
    level.prepare(spec_of("container"), quiet)
    with ExitStack() as undo:
        record = Record(secrets.token_hex(6), spec_of("container"), "10.198.2.8")
        record.directory.mkdir(parents=True)
        undo.callback(shutil.rmtree, record.directory)
        sandbox = level.create(record.spec, record, undo)
        sandbox.start()
        handle = sandbox.attach(shell("sleep 301 & echo begun; sleep 302"), stdin=None, stdout=pipes.stdout, stderr=2)
        assert os.read(pipes.reading, 100) == b"begun\n"
        handle.close()
        assert sandbox.exec(shell("cat /proc/[0-9]*/comm")).stdout.split().count(b"sleep") == 1
    level.remove_shared()


def test_logs_are_followed_to_the_end(make: Make) -> None:
    sandbox = make(shell("echo one; echo two >&2; sleep 0.7; echo three"))
    begin = time.monotonic()
    chunks = [(chunk, time.monotonic() - begin) for chunk in sandbox.logs(follow=True)]
    words = b"".join(chunk for chunk, _ in chunks).split()
    assert sorted(words) == [b"one", b"three", b"two"]  # two outputs are two pipes: their order is not kept
    assert words.index(b"one") < words.index(b"three")
    assert chunks[0][1] < chunks[-1][1]
    assert not sandbox.state().running
    assert sorted(output(sandbox).split()) == ["one", "three", "two"]


def test_following_a_log_can_be_given_up(make: Make) -> None:
    stream = make(shell("echo one; sleep 600")).logs(follow=True)
    assert next(stream) == b"one\n"
    stream.close()  # type: ignore[attr-defined]


def test_stop_kills_what_ignores_sigterm(make: Make) -> None:
    sandbox = make(
        (
            "/usr/bin/python3",
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
        )
    )
    assert next(sandbox.logs(follow=True)) == b"1\n"
    begin = time.monotonic()
    assert sandbox.stop(0.5) == 137
    assert 0.4 < time.monotonic() - begin < 5


def test_the_limit_on_processes_is_held(make: Make) -> None:
    sandbox = make(pids_limit=40)
    script = """
import errno, os, signal, sys
children, error = [], None
try:
    for _ in range(200):
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except OSError as caught:
    error = caught.errno
print(len(children), errno.errorcode.get(error))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
    found = sandbox.exec(["/usr/bin/python3", "-I", "-S", "-c", script], timeout=60.0)
    count, error = found.stdout.split()
    assert error == b"EAGAIN"
    assert 30 <= int(count) < 40
    assert sandbox.state().running
    assert sandbox.exec(["/bin/true"]).exit_code == 0


def test_the_limit_on_memory_is_held(make: Make, level: ContainerIsolation) -> None:
    sandbox = make(memory=96 * MIB)
    code, words = None, ""
    try:
        code = sandbox.exec(["/usr/bin/python3", "-I", "-S", "-c", "b'x' * (200 << 20)"], timeout=60.0).exit_code
    except EngineError as error:  # the host kills gvisor's kernel, and all of the sandbox with it
        words = error.message
    if level.name == "container":
        assert code == 137
        assert sandbox.state().running
        assert sandbox.events()["oom_kill"] >= 1
    else:
        assert "ended while" in words or code
        assert sandbox.wait(10.0) is not None


def test_an_address_is_on_the_network(make: Make) -> None:
    sandbox = make(("/usr/bin/python3", "-m", "http.server", "8080", "--directory", "/tmp"))
    address = sandbox.record.address
    deadline = time.monotonic() + 20
    while True:
        found = subprocess.run(["curl", "-sf", f"http://{address}:8080/"], capture_output=True, timeout=10, check=False)
        if found.returncode == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert b"Directory listing" in found.stdout
    assert (
        docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}", sandbox.name)
        == sandbox.record.mac
    )


def test_sweep_removes_what_nobody_knows(make: Make, level: ContainerIsolation) -> None:
    kept, lost = make(), make(start=False)
    theirs = {one[4:] for one in docker("ps", "-a", "--filter", "name=sbx-", "--format", "{{.Names}}").split()}
    known = theirs - {lost.record.id}  # others may be at work on this engine
    line = [f"container {lost.name}"]
    assert level.prune(known, dry_run=True) == line
    assert level.prune(known, dry_run=False) == line
    assert level.prune(known, dry_run=False) == []
    assert lost.state() == State(running=False)
    assert kept.state().running


def test_destroy_waits_for_a_removal_under_way(make: Make) -> None:
    sandbox = make()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(sandbox.remove) for _ in range(4)]:
            done.result()
    assert sandbox.inspect() is None


def test_destroy_finds_a_container_that_appears_late(make: Make) -> None:
    sandbox = make(start=False)
    sandbox.remove()
    sandbox.uncertain = True
    image = docker("image", "ls", "-q", "sandbox").split()[0]
    timer = threading.Timer(0.3, docker, ["create", "--name", sandbox.name, "--network", "none", image])
    timer.start()
    sandbox.remove()
    timer.join()
    assert sandbox.inspect() is None


def test_a_failed_create_is_undone(level: ContainerIsolation) -> None:
    spec = spec_of(level.name)
    record = Record(secrets.token_hex(6), spec, "203.0.113.1")  # not of the subnet
    with ExitStack() as undo:
        sandbox = level.create(spec, record, undo)
        with pytest.raises(EngineError, match="could not be started"):
            sandbox.start()
    assert sandbox.inspect() is None


def test_an_image_that_is_gone(level: ContainerIsolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level, "_image", "sandbox:000000000000")
    spec = spec_of(level.name)
    with ExitStack() as undo, pytest.raises(ImageError, match="does not have"):
        level.create(spec, Record(secrets.token_hex(6), spec, "198.19.2.251"), undo)


@pytest.mark.level("container")
def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    level = GVisorIsolation(OTHER)
    monkeypatch.setattr(GVisorIsolation, "runtime", "no-such-runtime")
    level.prepare(spec_of("gvisor"), quiet)
    spec = spec_of("gvisor")
    with ExitStack() as undo, pytest.raises(UnavailableError, match="no-such-runtime"):
        level.create(spec, Record(secrets.token_hex(6), spec, "10.198.2.252"), undo)
    level.remove_shared()


@pytest.mark.level("container")
def test_two_prepares_at_once() -> None:
    def prepare(_: int) -> None:
        ContainerIsolation(OTHER).prepare(spec_of("container"), quiet)

    level = ContainerIsolation(OTHER)
    level.remove_shared()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(prepare, range(4)))
    assert docker("network", "ls", "-q", "--filter", f"name=^{OTHER.name}$").count("\n") == 0
    assert level.remove_shared() == [f"docker network {OTHER.name}"]


@pytest.mark.level("container")
def test_a_network_with_other_settings_is_refused() -> None:
    level = ContainerIsolation(replace(OTHER, dynamic_range="10.198.3.0/24"))
    ContainerIsolation(OTHER).prepare(spec_of("container"), quiet)
    with pytest.raises(EngineError, match=r"ip-range is 10\.198\.1\.0/24, not 10\.198\.3\.0/24.*docker network rm"):
        level.prepare(spec_of("container"), quiet)
    assert ContainerIsolation(OTHER).remove_shared() == [f"docker network {OTHER.name}"]


@pytest.mark.parametrize("host", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:9"])
def test_no_daemon(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    level = ContainerIsolation(OTHER)
    with pytest.raises(UnavailableError) as caught:
        level.prepare(spec_of("container"), quiet)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    if host.startswith("unix"):
        assert level.prune((), dry_run=False) == []
        assert level.remove_shared() == []
    else:
        with pytest.raises(UnavailableError):
            level.prune((), dry_run=False)
