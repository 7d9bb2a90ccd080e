"""Test which mount targets are allowed, and the skeleton for those that the root filesystem lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.errors import SpecError
from sandbox.isolation.local import mounts as local_mounts
from sandbox.spec import Mount, SandboxSpec
from sandbox.state import paths
from sandbox.state.record import Record


def spec(*mounts: Mount, app: bool = False) -> SandboxSpec:
    return SandboxSpec("a", "reactor", "process", ("true",), mounts=mounts, app=app)


@pytest.mark.parametrize("target", ["/", "/tmp", "/run", "/proc", "/proc/self", "/sys/x", "/dev", "/dev/x", "/dev/shm"])
def test_the_walls_are_not_covered(target: str) -> None:
    with pytest.raises(SpecError, match=f":{target}:"):
        local_mounts.check(spec(Mount("/srv", target)))


def test_what_may_be_covered() -> None:
    local_mounts.check(spec(Mount("/srv", "/data"), Mount("/srv", "/tmp/x"), Mount("/srv", "/dev/shm/x"), app=True))


def test_one_place_once() -> None:
    with pytest.raises(SpecError):
        local_mounts.check(spec(Mount("/srv", "/data"), Mount("/opt", "/data")))
    with pytest.raises(SpecError):
        local_mounts.check(spec(Mount("/srv", "/app"), app=True))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Something like a root filesystem."""
    image = tmp_path / "image"
    (image / "opt").mkdir(parents=True)
    (image / "opt").chmod(0o750)
    (image / "etc").mkdir()
    (image / "etc" / "hosts").touch()
    (image / "bin").symlink_to("usr/bin")
    return image


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    record = Record("0123456789ab", spec(), "198.18.2.1")
    record.directory.mkdir(parents=True)
    return record


@pytest.mark.level("process")
def test_no_skeleton_where_the_image_has_the_targets(image: Path, record: Record, tmp_path: Path) -> None:
    mount = Mount(str(image / "etc"), "/opt", read_only=True)
    with local_mounts.layout(spec(mount), record, str(image)) as layout:
        assert layout.skeleton is None
        assert [(tree.target, tree.directory, tree.fresh) for tree in layout.trees] == [("/opt", True, False)]
        descriptor = layout.trees[0].descriptor
        assert os.path.samestat(os.fstat(descriptor), (image / "etc").stat())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with local_mounts.layout(spec(), record, str(image)) as layout:
        assert (layout.skeleton, layout.trees) == (None, ())


@pytest.mark.level("process")
def test_a_skeleton_has_the_modes_of_what_it_hides(image: Path, record: Record) -> None:
    mounts = (
        Mount(str(image / "etc"), "/opt/deep/er"),
        Mount(str(image / "etc" / "hosts"), "/etc/lone"),
        Mount(str(image / "etc"), "/tmp/new/one"),
    )
    with local_mounts.layout(spec(*mounts), record, str(image)) as layout:
        skeleton = record.directory / local_mounts.SKELETON
        assert layout.skeleton == str(skeleton)
        assert oct((skeleton / "opt").stat().st_mode)[-3:] == "750"
        assert (skeleton / "opt/deep/er").is_dir()
        assert (skeleton / "etc/lone").is_file()
        assert not (skeleton / "tmp").exists()
        assert [tree.target for tree in layout.trees if tree.fresh] == ["/tmp/new/one"]


@pytest.mark.level("process")
@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("etc", "/bin/x", "symbolic link /bin"),
        ("etc", "/etc/hosts/x", "through a file"),
        ("etc", "/etc/hosts", "is a file"),
        ("etc/hosts", "/opt", "is a directory"),
        ("bin", "/opt", "symbolic link"),
        ("nothing", "/opt", "does not exist"),
    ],
)
def test_what_does_not_fit_is_said(image: Path, record: Record, source: str, target: str, words: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    mount = Mount(str(image / source), target)
    with pytest.raises(SpecError, match=words), local_mounts.layout(spec(mount), record, str(image)):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.level("process")
def test_a_mount_inside_another_needs_its_place_there(image: Path, record: Record) -> None:
    outer = Mount(str(image), "/opt")
    with local_mounts.layout(spec(Mount(str(image / "opt"), "/opt/etc"), outer), record, str(image)) as layout:
        assert [tree.target for tree in layout.trees] == ["/opt", "/opt/etc"], "the outer one first"
    inner = Mount(str(image / "opt"), "/opt/none")
    with (
        pytest.raises(SpecError, match="/opt/none does not exist"),
        local_mounts.layout(spec(outer, inner), record, str(image)),
    ):
        pass
