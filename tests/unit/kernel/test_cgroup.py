"""Control groups: controllers found from the mount table, and what is written, for v1, hybrid and pure v2."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from sandbox.kernel import cgroup

V1 = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup {0}/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup {0}/memory cgroup rw,relatime,memory 0 0
cgroup {0}/pids cgroup rw,relatime,pids 0 0
cgroup {0}/systemd cgroup rw,relatime,name=systemd 0 0
"""
V2 = "cgroup2 {0} cgroup2 rw,nosuid,nodev,noexec,relatime 0 0\n"


def test_v1(tmp_path: Path) -> None:
    found = cgroup.read_hierarchy(V1.format(tmp_path))
    assert found.mode == "v1"
    assert found.v1["cpu"] == found.v1["cpuacct"] == tmp_path / "cpu,cpuacct"
    assert found.has("pids")
    assert not found.has("cpuset")


def test_hybrid(tmp_path: Path) -> None:
    assert cgroup.read_hierarchy((V1 + V2).format(tmp_path)).mode == "hybrid"


def pure_v2(root: Path) -> cgroup.Group:
    """Make a directory that looks like a v2 tree, with the files that the kernel would create."""
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (root / "cgroup.subtree_control").write_text("")
    parent = root / cgroup.PARENT
    parent.mkdir()
    (parent / "cgroup.subtree_control").write_text("")
    where = cgroup.read_hierarchy(V2.format(root))
    group = cgroup.Group("0123456789ab", where=where)
    (parent / group.ident).mkdir()
    for name in ("cpu.max", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpuset.cpus"):
        (parent / group.ident / name).write_text("")
    return group


def test_v2_files(tmp_path: Path) -> None:
    group = pure_v2(tmp_path)
    assert group.where.mode == "v2"
    assert group.directories() == [tmp_path / "sandbox" / "0123456789ab"]
    group.limit(cpus=0.5, memory=64 << 20, pids=32, cpuset="0")
    directory = group.directories()[0]
    written = {name: (directory / name).read_text() for name in ("cpu.max", "memory.max", "memory.swap.max")}
    assert written == {"cpu.max": "50000 100000", "memory.max": str(64 << 20), "memory.swap.max": "0"}
    assert (directory / "memory.oom.group").read_text() == "1"
    assert group.read_limits() == (0.5, 64 << 20, 32)


def test_v2_without_limits(tmp_path: Path) -> None:
    group = pure_v2(tmp_path)
    directory = group.directories()[0]
    (directory / "cpu.max").write_text("max 100000\n")
    (directory / "memory.max").write_text("max\n")
    (directory / "pids.max").write_text("max\n")
    assert group.read_limits() == (None, None, None)


def test_v2_freezes_by_one_file_and_looks_at_another(tmp_path: Path) -> None:
    group = pure_v2(tmp_path)
    directory = group.directories()[0]
    (directory / "cgroup.freeze").write_text("")
    (directory / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    group.freeze()
    assert (directory / "cgroup.freeze").read_text() == "1"
    assert group.frozen()
    (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    group.thaw()
    assert (directory / "cgroup.freeze").read_text() == "0"
    assert not group.frozen()
    with pytest.raises(TimeoutError):
        group.freeze(timeout=0.01)
    assert (directory / "cgroup.freeze").read_text() == "0", "what does not freeze is let go"


def test_v2_swap_oom_group_and_cpus(tmp_path: Path) -> None:
    group = pure_v2(tmp_path)
    directory = group.directories()[0]
    group.limit(cpus=1, memory=64 << 20, pids=32, cpuset=None)
    (directory / "cpuset.cpus.effective").write_text("0-3\n")
    assert (group.swap_limit(), group.oom_group(), group.cpuset()) == (0, True, "0-3")
    (directory / "memory.swap.max").write_text("max\n")
    (directory / "memory.oom.group").unlink()
    assert (group.swap_limit(), group.oom_group()) == (None, None)


def test_v2_block_io_is_summed_over_devices(tmp_path: Path) -> None:
    group = pure_v2(tmp_path)
    stat = group.directories()[0] / "io.stat"
    stat.write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=1\n254:0 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=5\n")
    assert group.block_io() == (11, 22)
    stat.unlink()
    assert group.block_io() == (None, None)


@pytest.mark.level("process")
def test_the_real_one_freezes_what_is_in_it_and_kills_it_frozen() -> None:
    group = cgroup.Group("00000000bee5")
    group.create()
    try:
        process = subprocess.Popen(["sleep", "60"])
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        for directory in group.directories():
            (directory / "cgroup.procs").write_text(str(process.pid))
        group.freeze()
        assert group.frozen()
        assert group.pids() == [process.pid]
        read, written = group.block_io()
        assert read is not None  # the parts of its program that were not in memory yet
        assert read % 512 == 0
        assert written == 0
        group.kill()
        reaper.join(5)
        assert process.returncode == -9
    finally:
        group.remove()
    assert not group.frozen()
    with pytest.raises(OSError, match="No such file"):
        group.freeze()


@pytest.mark.level("process")
def test_the_real_one() -> None:
    group = cgroup.Group("00000000beef")
    group.create()
    try:
        group.limit(cpus=0.25, memory=32 << 20, pids=16, cpuset=None)
        assert group.read_limits() == (0.25, 32 << 20, 16)
        assert group.ident in cgroup.all_groups()
        assert group.pids() == []
    finally:
        group.remove()
    group.remove()
    cgroup.remove_parent()
    assert group.ident not in cgroup.all_groups()
