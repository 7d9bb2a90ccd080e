"""Entries on disk: committed in one step, checked for damage, removed unless in use. Needs no root and no engine."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from sandbox import images
from sandbox.errors import BusyError, ImageError, NotFoundError, UnavailableError
from sandbox.images import bootstrap, build, cache, contained, forms, housekeeping, locking, workspace
from sandbox.images.recipe import Form, Stage, digests, load
from sandbox.state import paths

ONE = "1" * 64
TWO = "1234" + "2" * 60


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)  # only the check for root needs it
    paths.images_dir().mkdir(parents=True)
    return tmp_path / "state"


def make(stage: Stage, digest: str, content: str = "x") -> cache.Entry:
    with workspace.workspace(0) as space:
        tree = space.result / cache.CONTENT
        tree.mkdir()
        (tree / "file").write_text(content)
        return cache.commit(space, stage, digest, ["file"], {"fact": 1})


def left() -> list[str]:
    return sorted(os.listdir(paths.images_dir()))


def test_commit_and_read() -> None:
    entry = make(Stage.ROOTFS, ONE)
    assert left() == ["rootfs-111111111111"]
    assert cache.read(Stage.ROOTFS, ONE) == entry
    assert entry.path.joinpath("file").read_text() == "x"
    assert entry.damage() is None
    assert entry.differences() == []
    assert entry.facts == {"fact": 1}
    assert entry.size > 0


def test_another_digest_with_the_same_beginning_is_another_image() -> None:
    make(Stage.ROOTFS, ONE)
    assert cache.read(Stage.ROOTFS, ONE[:12] + "0" * 52) is None
    assert cache.read(Stage.VM, ONE) is None


def test_an_exception_leaves_nothing() -> None:
    def fail() -> None:
        with workspace.workspace(0) as space:
            (space.result / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert left() == []


def test_a_missing_key_file_is_no_image() -> None:
    with workspace.workspace(0) as space:
        (space.result / cache.CONTENT).mkdir()
        with pytest.raises(ImageError, match=r"disk\.raw"):
            cache.commit(space, Stage.VM, ONE, ["disk.raw"])
    assert left() == []


def test_a_full_disk_is_refused_at_once() -> None:
    with (
        pytest.raises(ImageError, match=r"MiB free, and the build needs about") as caught,
        workspace.workspace(1 << 60),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert left() == []


@pytest.mark.parametrize("harm", ["remove", "truncate", "mode"])
def test_damage_is_seen_at_a_glance(harm: str) -> None:
    entry = make(Stage.ROOTFS, ONE)
    file = entry.path / "file"
    if harm == "remove":
        file.unlink()
    elif harm == "truncate":
        file.write_text("")
    else:
        file.chmod(0o600)
    assert entry.damage() is not None
    assert entry.differences()


def test_other_damage_is_seen_byte_by_byte() -> None:
    entry = make(Stage.ROOTFS, ONE)
    (entry.path / "more").write_text("x")
    assert entry.damage() is None
    assert images.verify(lambda _: None) == ["rootfs-111111111111: more was added"]
    (entry.directory / cache.LISTING_FILE).write_text("")
    assert entry.differences() == ["listing was changed, so the content cannot be compared with it"]


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "stage": "no"}'])
def test_a_broken_manifest_is_no_image(manifest: str | None) -> None:
    entry = make(Stage.ROOTFS, ONE)
    path = entry.directory / cache.MANIFEST_FILE
    path.unlink()
    if manifest is not None:
        path.write_text(manifest)
    assert cache.read(Stage.ROOTFS, ONE) is None
    assert cache.broken() == [entry.directory]
    assert "not a complete image" in " ".join(images.ls()[1])
    assert images.remove(old=True).removed == ["incomplete image rootfs-111111111111"]
    assert left() == []


def test_find_takes_the_current_sound_one_alone() -> None:
    current = digests()
    assert images.find(Form.ROOTFS) is None
    make(Stage.ROOTFS, ONE)
    assert images.find(Form.ROOTFS) is None
    entry = make(Stage.ROOTFS, current[Stage.ROOTFS])
    found = images.find(Form.ROOTFS)
    assert found == images.Image(Form.ROOTFS, current[Stage.ROOTFS], entry.path, None, entry.size)
    assert images.ensure(Form.ROOTFS, lambda _: None) == found
    (entry.path / "file").unlink()
    assert images.find(Form.ROOTFS) is None


def test_no_docker_daemon() -> None:
    assert images.find(Form.DOCKER) is None
    with pytest.raises(UnavailableError, match="does not answer"):
        images.ensure(Form.DOCKER, lambda _: None)
    assert "images in Docker are not listed" in images.ls()[1][0]


def test_ls_says_what_is_current() -> None:
    make(Stage.ROOTFS, ONE)
    make(Stage.ROOTFS, digests()[Stage.ROOTFS])
    items, _ = images.ls()
    assert [(item.stage, item.current) for item in items] == [(Stage.ROOTFS, False), (Stage.ROOTFS, True)]


def test_remove_by_reference() -> None:
    make(Stage.ROOTFS, ONE)
    make(Stage.VM, ONE)
    make(Stage.KERNEL, TWO)
    with pytest.raises(NotFoundError, match="matches 2 images"):
        images.remove("1111")
    for reference in ("nope", "111", "docker-1111", ""):
        with pytest.raises(NotFoundError, match="there is no image"):
            images.remove(reference)
    assert images.remove("vm-1111", dry_run=True).removed == ["image vm-111111111111"]
    assert len(left()) == 3
    assert images.remove("vm-1111", "1234").removed == ["image vm-111111111111", f"image kernel-{TWO[:12]}"]
    assert left() == ["rootfs-111111111111"]


def test_remove_old_keeps_the_current() -> None:
    make(Stage.ROOTFS, ONE)
    make(Stage.ROOTFS, digests()[Stage.ROOTFS])
    assert images.remove(old=True).removed == ["image rootfs-111111111111"]
    assert len(left()) == 1
    assert len(images.remove(everything=True).removed) == 1
    assert left() == []


def test_what_is_in_use_is_kept_and_the_rest_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    used = make(Stage.ROOTFS, ONE)
    make(Stage.VM, ONE)

    def users(entry: cache.Entry) -> list[str]:
        return ["sandbox web-1"] if entry.directory == used.directory else []

    monkeypatch.setattr("sandbox.images.usage.users", users)
    result = images.remove(everything=True)
    assert result.removed == ["image vm-111111111111"]
    assert result.kept == ["rootfs-111111111111 is in use by sandbox web-1"]
    assert left() == ["rootfs-111111111111"]


def test_a_process_that_uses_it_is_found() -> None:
    from sandbox.images import usage

    entry = make(Stage.ROOTFS, ONE)
    assert usage.users(entry) == []
    child = os.fork()
    if child == 0:
        os.chdir(entry.path)
        time.sleep(60)
        os._exit(0)
    try:
        deadline = time.monotonic() + 5
        while not (found := usage.users(entry)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found
        assert found[0].startswith(f"process {child} (")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_damaged_image_in_use_is_not_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    current = digests()
    make(Stage.BASE, current[Stage.BASE])
    entry = make(Stage.ROOTFS, current[Stage.ROOTFS])
    (entry.path / "file").unlink()
    monkeypatch.setattr("sandbox.images.usage.users", lambda _: ["sandbox web-1"])
    with pytest.raises(BusyError, match="web-1"):
        images.ensure(Form.ROOTFS, lambda _: None)
    assert entry.directory.exists()


def test_sweep_takes_the_dead_and_leaves_the_living() -> None:
    (paths.images_dir() / ".tmp-dead").mkdir()
    living = paths.images_dir() / ".tmp-living"
    living.mkdir()
    descriptor = os.open(living / workspace.LEASE_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert images.prune(dry_run=True) == ["unfinished image .tmp-dead"]
        assert images.prune() == ["unfinished image .tmp-dead"]
        assert left() == [".tmp-living"]
        assert images.prune() == []
    finally:
        os.close(descriptor)
    assert images.prune() == ["unfinished image .tmp-living"]
    assert left() == []


def test_while_a_build_runs_nothing_is_swept_or_removed() -> None:
    make(Stage.ROOTFS, ONE)
    (paths.images_dir() / ".tmp-dead").mkdir()
    with locking.exclusive(lambda _: None):
        assert images.prune() == []
        with pytest.raises(BusyError):
            images.remove(everything=True)
    assert len(left()) == 2


def test_nothing_is_removed_across_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make(Stage.ROOTFS, ONE)
    monkeypatch.setattr(workspace, "mounts_below", lambda _: ["/mnt/data"])
    with pytest.raises(ImageError, match="/mnt/data is a mount point in it"):
        images.remove("1111")
    assert entry.damage() is None


def test_a_directory_that_is_still_written_to_is_removed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import shutil

    tries = []
    remove = shutil.rmtree

    def busy(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    monkeypatch.setattr(workspace, "_PAUSE", 0.0)
    (paths.images_dir() / ".tmp-dead").mkdir()
    images.prune()
    assert left() == []
    tries.clear()
    monkeypatch.setattr(workspace, "_TRIES", 2)
    (paths.images_dir() / ".tmp-dead").mkdir()
    with pytest.raises(ImageError, match="keeps writing"):
        images.prune()


def test_only_root_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="needs root"):
        images.ensure(Form.ROOTFS, lambda _: None)


def test_no_mmdebstrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contained, "PATH", str(tmp_path))
    monkeypatch.setattr(build, "DISK_NEEDED", dict.fromkeys(build.DISK_NEEDED, 0))
    with pytest.raises(UnavailableError, match="mmdebstrap is not installed"):
        images.ensure(Form.ROOTFS, lambda _: None)
    assert left() == []


def test_workloads_that_change_meanwhile_give_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "DISK_NEEDED", dict.fromkeys(build.DISK_NEEDED, 0))
    monkeypatch.setattr(build, "_base", lambda *_: ([], {}))
    with pytest.raises(ImageError, match="changed during the build"):
        build.stage(Stage.BASE, ONE, load(), {}, lambda _: None)
    assert left() == []


def test_stages_build_what_is_below_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def stage(which: Stage, digest: str, *_: object) -> cache.Entry:
        made.append(which.value)
        return make(which, digest)

    monkeypatch.setattr(build, "stage", stage)
    lines: list[str] = []
    images.ensure(Form.VM, lines.append)
    assert made == ["base", "rootfs", "kernel", "vm"]
    assert lines[0].startswith("base: built in 0 s")
    images.remove("vm-" + digests()[Stage.VM])
    made.clear()
    images.ensure(Form.VM, lines.append)
    assert made == ["vm"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("dpkg: error: cannot copy: No space left on device", "the disk is full", "SANDBOX_STATE_DIR"),
        ("W: GPG error: NO_PUBKEY 0E98404D386FA1D9", "signature could not be verified", "debian-archive-keyring"),
        ("Err:1 Temporary failure resolving 'mirror.example'", "mirror could not be used", "SANDBOX_APT_MIRROR"),
        ("E: Unable to locate package tini", "lacks a package of the recipe", "mirror"),
        ("unshare: unshare failed: Operation not permitted", "namespaces", "CAP_SYS_ADMIN"),
    ],
)
def test_failures_are_explained(line: str, message: str, hint: str) -> None:
    found = bootstrap.explain(["I: running", line, "E: apt-get update failed"])
    assert message in found[0]
    assert hint in str(found[1])


def test_other_failures_say_what_the_tool_said() -> None:
    assert bootstrap.explain(["I: x", "E: first", "E: second"]) == ("first", None)
    assert bootstrap.explain(["last words", ""]) == ("last words", None)
    assert bootstrap.explain([]) == ("no output", None)


def test_the_listing_is_lazy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sandbox.images; print(sorted({'http.client', 'ssl', 'sandbox.images.build'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"
    assert images.ls is housekeeping.ls
    assert images.ensure is forms.ensure


def test_json_of_a_manifest_is_versioned() -> None:
    entry = make(Stage.ROOTFS, ONE)
    raw = json.loads((entry.directory / cache.MANIFEST_FILE).read_text())
    assert raw["version"] == cache.VERSION
