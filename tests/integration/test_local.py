"""What the local levels promise beside the contract: no descriptor, clock, log or owner of the host in reach."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import EngineError, SpecError
from sandbox.isolation.base import WindowSize
from sandbox.kernel.cgroup import Group
from sandbox.lifecycle.manager import Manager, Running
from sandbox.spec import MIB, Mount, SandboxSpec

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
LOCAL = [pytest.param(level, marks=pytest.mark.level(level)) for level in ("process", "namespace")]


@pytest.fixture(scope="module", params=LOCAL)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manager() -> Manager:
    return Manager()


def plain(manager: Manager, level: str, *argv: str) -> SandboxSpec:
    return replace(manager.make_spec("reactor", level, memory="128m", pids_limit=64), argv=argv, port=None)


@pytest.fixture(scope="module")
def idle(level: str, manager: Manager) -> Iterator[Running]:
    """A sandbox that does nothing, once it does that; commands run beside it."""
    with manager.running(plain(manager, level, "sleep", "86400")) as running:
        assert comes_true(lambda: _names(running) == ["sleep", "tini"])
        yield running


def _names(running: Running) -> list[str]:
    """What its processes are, sorted: proc_pid_comm(5)."""
    return sorted(
        Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() for pid in Group(running.record.id).pids()
    )


def comes_true(condition: Callable[[], bool], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def run(running: Running, script: str, *, root: bool = False) -> str:
    result = running.sandbox.exec([*PYTHON, script], timeout=60, root=root)
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode().strip()


def test_a_command_has_three_descriptors(idle: Running) -> None:
    kept = os.open("/", os.O_PATH)
    os.set_inheritable(kept, True)
    try:
        assert run(idle, "import os;print(sorted(os.listdir('/proc/self/fd'))[:-1])") == "['0', '1', '2']"
    finally:
        os.close(kept)


def test_the_workload_has_three_descriptors(level: str, manager: Manager) -> None:
    kept = os.open("/", os.O_PATH)
    os.set_inheritable(kept, True)
    script = "import os,time;print(sorted(os.listdir('/proc/self/fd'))[:-1],flush=True);time.sleep(600)"
    try:
        with manager.running(plain(manager, level, *PYTHON, script)) as running:
            assert comes_true(lambda: b"\n" in b"".join(running.sandbox.logs()))
            assert b"".join(running.sandbox.logs()) == b"['0', '1', '2']\n"
            effective = running.sandbox.effective()
            assert effective["process"]["descriptors"] == ["0 device", "1 pipe", "2 pipe"]
    finally:
        os.close(kept)


@pytest.mark.parametrize("terminal", [None, WindowSize(24, 80)], ids=["pipes", "terminal"])
def test_a_command_dies_with_its_caller(idle: Running, terminal: WindowSize | None) -> None:
    """SIGKILL to the caller: nothing of its runs that could tidy up."""
    script = (
        "import os,sys,time\nfrom sandbox.lifecycle.manager import Manager\n"
        "from sandbox.isolation.base import WindowSize\n"
        f"found=Manager().get({idle.record.name!r}).sandbox.attach(['sleep','7321'],stdin=None,stdout=1,stderr=2,"
        f"terminal={'None' if terminal is None else 'WindowSize(24,80)'})\nprint('up',flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "up\n"
        assert sleepers() == 1
        caller.kill()
    assert comes_true(lambda: sleepers() == 0)
    assert idle.sandbox.state().running


def sleepers() -> int:
    """Processes of the host that are `sleep 7321`."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += (entry / "cmdline").read_bytes() == b"sleep\x007321\0"
            except OSError:
                continue
    return found


def test_a_reader_that_goes_away_ends_a_command_by_sigpipe(idle: Running) -> None:
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    attached = idle.sandbox.attach(["/bin/sh", "-c", "yes"], stdin=None, stdout=write, stderr=null)
    try:
        os.read(read, 10)
        os.close(read)
        assert attached.wait() == 128 + signal.SIGPIPE
    finally:
        attached.close()
        os.close(write)
        os.close(null)


def test_a_child_that_writes_on_and_on_does_not_hold_its_parents_end_up(idle: Running) -> None:
    began = time.monotonic()
    result = idle.sandbox.exec(["/bin/sh", "-c", "yes & echo last >&2; exit 4"], timeout=60)
    assert (result.exit_code, result.stderr) == (4, b"last\n")
    assert time.monotonic() - began < 30
    idle.sandbox.exec(["/bin/sh", "-c", "kill -9 $(grep -l ^yes /proc/[0-9]*/comm | cut -d/ -f3) 2>&-"], timeout=60)


def test_a_sandbox_that_ends_under_a_command_is_said(level: str, manager: Manager) -> None:
    with manager.running(plain(manager, level, "sleep", "86400")) as running:
        null = os.open(os.devnull, os.O_RDWR)
        attached = running.sandbox.attach(["sleep", "7322"], stdin=None, stdout=null, stderr=null)
        try:
            running.sandbox.kill(signal.SIGKILL)
            with pytest.raises(EngineError, match="ended"):
                attached.wait()
        finally:
            attached.close()
            os.close(null)


def test_commands_into_a_paused_sandbox_are_refused(idle: Running) -> None:
    idle.sandbox.pause()
    try:
        with pytest.raises(EngineError, match="paused"):
            idle.sandbox.exec(["true"], timeout=10)
    finally:
        idle.sandbox.unpause()
    assert idle.sandbox.exec(["true"], timeout=10).exit_code == 0


def test_signals_that_the_init_keeps_reach_the_workload(level: str, manager: Manager) -> None:
    with manager.running(plain(manager, level, "sleep", "86400")) as running:
        running.sandbox.kill(signal.SIGABRT)
        assert running.sandbox.wait(10) == 128 + signal.SIGABRT
        with pytest.raises(EngineError):
            running.sandbox.kill(signal.SIGABRT)


def test_no_such_signal(idle: Running) -> None:
    with pytest.raises(EngineError, match="4711"):
        idle.sandbox.kill(4711)


def test_the_log_has_an_end_and_the_workload_does_not_feel_it(level: str, manager: Manager) -> None:
    """A server that writes on and on fills 64 MiB of the host's disk, and not more; and it goes on."""
    script = (
        "import os,time\nblock=bytes(1<<20)\nfor _ in range(200): os.write(1,block)\n"
        "os.write(2,b'done\\n')\ntime.sleep(600)"
    )
    with manager.running(plain(manager, level, *PYTHON, script)) as running:
        assert comes_true(lambda: b"".join(running.sandbox.logs(tail=1)) == b"done\n", 60)
        size = sum(path.stat().st_size for path in running.record.directory.glob("log*"))
        assert 32 * MIB < size <= 64 * MIB + (1 << 16)
        dropped: list[int] = []
        text = sum(len(piece.data) for piece in running.sandbox.pieces(dropped=dropped.append))
        assert text + sum(dropped) == 200 * MIB + len("done\n")
        assert running.sandbox.effective()["limits"]["file_size"] is None


def test_the_log_is_out_of_the_workloads_reach(level: str, manager: Manager) -> None:
    """What it has are pipes: no room to take beyond the cap, nothing to truncate, to forge or to read back."""
    script = (
        "import ctypes,os,sys,time\nlibc=ctypes.CDLL(None,use_errno=True)\nprint('written',flush=True)\nfound=[]\n"
        "libc.fallocate.argtypes=[ctypes.c_int,ctypes.c_int,ctypes.c_long,ctypes.c_long]\n"
        "for act in (lambda: libc.fallocate(1,1,0,3<<30), lambda: os.ftruncate(1,0), lambda: os.lseek(1,0,0),\n"
        "            lambda: os.pwrite(1,b'forged',0)):\n"
        "    try: found.append(act() == -1)\n    except OSError: found.append(True)\n"
        "print(found,os.readlink('/proc/self/fd/1').split(':')[0],flush=True)\ntime.sleep(600)"
    )
    with manager.running(plain(manager, level, *PYTHON, script)) as running:
        assert comes_true(lambda: b"".join(running.sandbox.logs()).count(b"\n") == 2)
        assert b"".join(running.sandbox.logs()) == b"written\n[True, True, True, True] pipe\n"
        assert sum(path.stat().st_blocks for path in running.record.directory.glob("log*")) * 512 < MIB


def test_a_target_through_a_link_of_the_image_is_refused(level: str, manager: Manager, tmp_path: Path) -> None:
    mount = Mount(str(tmp_path.resolve()), "/bin/inside", read_only=True)
    with pytest.raises(SpecError, match="symbolic link /bin"):
        manager.run(replace(plain(manager, level, "true"), mounts=(mount,)))


def test_a_file_is_not_mounted_on_a_directory(level: str, manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mount = Mount(str(tmp_path.resolve() / "file"), "/mnt", read_only=True)
    with pytest.raises(SpecError, match="/mnt is a directory"):
        manager.run(replace(plain(manager, level, "true"), mounts=(mount,)))


def test_what_is_mounted_below_a_read_only_mount_is_read_only(level: str, manager: Manager, tmp_path: Path) -> None:
    source = tmp_path.resolve() / "source"
    (source / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(source / "below")], check=True)
    try:
        spec = replace(plain(manager, level, "sleep", "600"), mounts=(Mount(str(source), "/mnt", read_only=True),))
        with manager.running(spec) as running:
            result = running.sandbox.exec(["touch", "/mnt/below/x"], timeout=30, root=True)
            assert b"Read-only file system" in result.stderr
            mounts = {mount["target"]: mount for mount in running.sandbox.effective()["mounts"]}
            for target in ("/mnt", "/mnt/below"):
                assert {"ro", "nosuid", "nodev"} <= set(mounts[target]["options"])
    finally:
        subprocess.run(["umount", str(source / "below")], check=True)


@pytest.mark.level("namespace")
def test_the_clock_begins_with_the_sandbox(manager: Manager) -> None:
    with manager.running(plain(manager, "namespace", "sleep", "600")) as running:
        script = "import time;print([float(open('/proc/uptime').read().split()[0]),time.monotonic()])"
        for figure in json.loads(run(running, script)):
            assert 0 <= figure < 60
        assert running.sandbox.effective()["namespaces"]["time"]["own"]


@pytest.mark.level("namespace")
def test_the_root_inside_is_not_the_root_of_a_mounts_files(manager: Manager, tmp_path: Path) -> None:
    source = tmp_path.resolve()
    source.chmod(0o777)
    (source / "of-root").write_text("x")
    (source / "of-10001").write_text("x")
    os.chown(source / "of-10001", 10001, 10001)
    spec = replace(plain(manager, "namespace", "sleep", "600"), mounts=(Mount(str(source), "/mnt"),))
    with manager.running(spec) as running:
        owners = "import os;print([os.stat('/mnt/'+n).st_uid for n in ('of-root','of-10001')])"
        assert run(running, owners) == "[65534, 10001]"
        for act in ("touch /mnt/new", "chmod 4755 /mnt/of-root", "sh -c 'echo y >> /mnt/of-root'"):
            assert running.sandbox.exec(["/bin/sh", "-c", act], timeout=30, root=True).exit_code != 0, act
        assert not (source / "new").exists()
        assert (source / "of-root").read_text() == "x"


@pytest.mark.level("namespace")
def test_a_crash_is_not_handed_to_the_hosts_collector(manager: Manager) -> None:
    script = "import resource;print(resource.getrlimit(resource.RLIMIT_CORE))"
    with manager.running(plain(manager, "namespace", "sleep", "600")) as running:
        assert run(running, script) == "(1, 1)"
        assert run(running, script, root=True) == "(1, 1)"
        limits = Path(f"/proc/{running.record.process.pid}/limits").read_text() if running.record.process else ""
        assert any(line.split()[:6] == ["Max", "core", "file", "size", "1", "1"] for line in limits.splitlines())


@pytest.mark.level("namespace")
def test_what_is_in_force_is_what_was_promised(manager: Manager) -> None:
    with manager.running(plain(manager, "namespace", "sleep", "600")) as running:
        found = running.sandbox.effective()
    assert found["user"]["uid_outside"] == 1_879_048_192 + 10001
    assert found["user"]["setgroups"] == "deny"
    assert found["user"]["groups"] == []
    assert found["capabilities"] == {name: [] for name in found["capabilities"]}
    assert len(found["capabilities"]) == 5
    assert found["seccomp"] == {"mode": "filter", "filters": 1, "no_new_privileges": True}
    assert {kind for kind, one in found["namespaces"].items() if not one["own"]} == set()
    assert len(found["namespaces"]) == 8
    assert found["root"]["read_only"]
    assert {"/proc/keys", "/proc/timer_list", "/sys/firmware"} <= set(found["masked_paths"])
    assert "/proc/sys" in found["read_only_paths"]
    assert found["limits"]["swap"] == 0
    assert set(found["network"]["interfaces"]) == {"lo", "eth0"}


@pytest.mark.level("process")
def test_the_control_is_said_to_be_none(manager: Manager) -> None:
    with manager.running(plain(manager, "process", "sleep", "600")) as running:
        found = running.sandbox.effective()
    assert found["user"]["uid_outside"] == 10001
    assert {kind for kind, one in found["namespaces"].items() if one["own"]} == set()
    assert found["seccomp"]["mode"] == "none"
    assert found["root"]["read_only"]
    assert not found["network"]["own"]
