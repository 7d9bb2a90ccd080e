"""Where controllers are, from the mount table, for v1, hybrid and pure v2; and what is written for each."""

from __future__ import annotations

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
    """A directory that looks like a v2 tree: the files that a kernel would make are made by hand."""
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
