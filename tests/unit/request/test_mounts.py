"""Bind mounts: the sources and targets that are allowed, and those that are refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sandbox.errors import SpecError
from sandbox.kernel import procfs
from sandbox.request import mounts
from sandbox.spec import Mount


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("x", encoding="ascii")
    return tmp_path / "data"


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        mounts.parse_one(text)
    assert str(caught.value).isprintable()
    assert caught.value.hint
    return str(caught.value)


def test_directories_and_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts.parse_one(f"{data}:/data") == Mount(str(data), "/data", read_only=False)
    assert mounts.parse_one(f"{data}:/data:ro").read_only
    assert not mounts.parse_one(f"{data}:/data:rw").read_only
    assert mounts.parse_one(f"{data}/file:/etc/x//y/").target == "/etc/x/y"
    monkeypatch.chdir(data.parent)
    assert mounts.parse_one("data:/data").source == str(data)
    assert mounts.parse_one("./data/:/data").source == str(data)


@pytest.mark.parametrize("text", ["", "a", ":", "/tmp:", ":/data", "/tmp:/d:rw:ro", "/tmp:/d:z", "/tmp:/d:"])
def test_other_forms(text: str) -> None:
    assert "HOST:CTR[:ro]" in refused(text)


@pytest.mark.parametrize(
    "source",
    ["/", "//", "/proc", "/proc/1", "/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/run", "/run/lock", "/var",
     "/var/lib"],
)  # fmt: skip
def test_parts_of_the_host_itself(source: str) -> None:
    assert "cannot be mounted" in refused(f"{source}:/data")


def test_the_docker_socket(tmp_path: Path) -> None:
    for source in ("/var/run/docker.sock", "/run/docker.sock"):
        assert refused(f"{source}:/data")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "elsewhere.sock"))
        assert "neither a directory nor a regular file" in refused(f"{tmp_path}/elsewhere.sock:/data")


def test_our_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "around" / "state"
    (state / "sandboxes").mkdir(parents=True)
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(state))
    for source in (state, state / "sandboxes", state.parent):
        assert "own state" in refused(f"{source}:/data")


@pytest.mark.parametrize("source", ["..", "../x", "/tmp/../etc", "a/..", "/tmp/.."])
def test_a_source_with_dots(source: str) -> None:
    assert "'..'" in refused(f"{source}:/data")


def test_a_source_through_a_link(data: Path) -> None:
    link = data.parent / "link"
    link.symlink_to(data)
    assert str(data) in refused(f"{link}:/data")
    assert str(data / "file") in refused(f"{link}/file:/data")
    (data / "inner").symlink_to("/etc/passwd")
    assert "/etc/passwd" in refused(f"{data}/inner:/data")
    (data / "dangling").symlink_to("nothing")
    assert refused(f"{data}/dangling:/data")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(f"{tmp_path}/nothing:/data")


def test_no_devices_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "neither a directory nor a regular file" in refused(f"{tmp_path}/pipe:/data")


@pytest.mark.parametrize("source", ["/tmp\n", "/tmp\x1b[2J", "/tmp\udcff", "/tmp\0"])
def test_a_source_that_cannot_be_printed(source: str) -> None:
    assert refused(f"{source}:/data")


@pytest.mark.parametrize(
    "target",
    ["data", "/", "//", "/a/../b", "/..", "/proc", "/proc/1", "/sys/fs", "/dev", "/dev/shm", "/tmp", "/tmp/x", "/run",
     "/run/x", "/app", "/app/x", "/var/tmp", "/a\n", "/a\0", "/a\x1b[2J", "//proc", "/./proc"],
)  # fmt: skip
def test_places_that_are_refused(data: Path, target: str) -> None:
    assert refused(f"{data}:{target}")


@pytest.mark.parametrize("target", ["/data", "/application", "/procs", "/devices", "/srv/www"])
def test_places_that_are_fine(data: Path, target: str) -> None:
    assert mounts.parse_one(f"{data}:{target}").target == target


def test_a_place_of_its_own_for_each(data: Path) -> None:
    assert [one.target for one in mounts.parse_all([f"{data}:/b", f"{data}:/a"])] == ["/a", "/b"]
    for second in ("/data", "/data/inner", "/"):
        with pytest.raises(SpecError):
            mounts.parse_all([f"{data}:/data", f"{data}:{second}"])
    with pytest.raises(SpecError, match="overlap"):
        mounts.parse_all([f"{data}:/data/inner", f"{data}:/data"])


def test_a_file_system_of_the_kernel_wherever_it_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(path: Path, kind: str) -> None:
        table = procfs.mounts(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {path} rw - {kind} b rw\n")
        monkeypatch.setattr(procfs, "own_mounts", lambda: table)

    mounted(data / "deep", "proc")
    assert "proc is mounted" in refused(f"{data}:/data")
    mounted(data.parent, "sysfs")
    assert "sysfs is mounted" in refused(f"{data}:/data")
    mounted(data, "tmpfs")
    assert mounts.parse_one(f"{data}:/data")
