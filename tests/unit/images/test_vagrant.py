"""The Vagrant box: the additions to the root filesystem, and incomplete boxes, which are not used."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest

from sandbox.errors import ImageError, UnavailableError
from sandbox.images import vagrant, vm
from sandbox.images.vagrant import Box
from sandbox.state import paths
from sandbox.state.data import data_dir
from tests.unit.images.test_vm import read_cpio

KEY = "ssh-ed25519 AAAA test\n"
ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nsandbox:x:10001:10001::/tmp:/usr/sbin/nologin\n",
    "group": "root:x:0:\nsandbox:x:10001:\n",
    "shadow": "root:*:19000::::::\n",
    "gshadow": "root:*::\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the part of a root filesystem that is added to, without changing owners, which needs root."""
    tree = tmp_path / "root"
    for name in ("etc/pam.d", "usr/lib", "usr/sbin"):
        (tree / name).mkdir(parents=True)
    for name, text in ACCOUNTS.items():
        (tree / "etc" / name).write_text(text)
    (tree / "etc/pam.d/su").write_text("auth sufficient pam_rootok.so\n@include common-auth\n")
    monkeypatch.setattr(os, "chown", lambda *_: None)
    return tree


def test_the_user_has_the_key_and_no_password(root: Path) -> None:
    vagrant.prepare(root, KEY)
    passwd = (root / "etc/passwd").read_text()
    assert passwd == ACCOUNTS["passwd"] + "vagrant:x:1000:1000::/home/vagrant:/bin/bash\n"
    assert (root / "etc/shadow").read_text().splitlines()[-1].split(":")[1] == "*"
    keys = root / "home/vagrant/.ssh/authorized_keys"
    assert keys.read_text() == KEY
    # dropbear ignores a file of keys that others can write to.
    assert [stat.S_IMODE(path.stat().st_mode) for path in (keys, keys.parent, keys.parent.parent)] == [
        0o600,
        0o700,
        0o755,
    ]


def test_su_asks_the_group_alone_for_no_password(root: Path) -> None:
    before = (root / "etc/pam.d/su").read_text()
    vagrant.prepare(root, KEY)
    after = (root / "etc/pam.d/su").read_text()
    assert after == f"auth sufficient pam_wheel.so trust use_uid group=vagrant\n{before}"
    assert (root / "etc/group").read_text().splitlines()[-1] == "vagrant:x:1000:vagrant"


@pytest.mark.parametrize("line", ["vagrant:x:5:5::/:/bin/sh\n", "somebody:x:1000:1000::/:/bin/sh\n"])
def test_a_user_that_is_there_already_is_refused(root: Path, line: str) -> None:
    with (root / "etc/passwd").open("a") as file:
        file.write(line)
    with pytest.raises(ImageError, match="etc/passwd"):
        vagrant.prepare(root, KEY)


def test_all_that_inittab_starts_is_there(root: Path) -> None:
    vagrant.prepare(root, KEY)
    lines = (root / "etc/inittab").read_text().splitlines()
    started = [line.split(":", 3)[3] for line in lines if line and not line.startswith("#")]
    scripts = [name for name in started if name.startswith(f"/{vagrant.BOX_HOME}/")]
    assert len(scripts) == 3
    for name in (*scripts, f"/{vagrant.BOX_HOME}/lease", "/usr/sbin/shutdown"):
        assert os.access(root / name.lstrip("/"), os.X_OK), name


def test_no_script_of_the_box_is_left_out(root: Path) -> None:
    vagrant.prepare(root, KEY)
    found = {path.name for path in root.rglob("*") if path.is_file()}
    assert {path.name for path in (data_dir("vm") / "box").iterdir()} - {"init"} <= found


def test_the_command_comes_back_from_the_shell(root: Path) -> None:
    vagrant.prepare(root, KEY)
    script = '. "$0"; for word; do printf "%s\\n" "$word"; done'
    words = ["sh", "-c", script, str(root / vagrant.BOX_HOME / "command")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.splitlines()) == vagrant.command()


def test_the_init_takes_the_place_of_the_levels_own() -> None:
    archive = vagrant.init_archive()
    (entry,) = read_cpio(archive)
    assert entry[:3] == ("guest/init", stat.S_IFREG | 0o755, (data_dir("vm") / "box" / "init").read_bytes())
    # The kernel unpacks consecutive archives if each begins at a multiple of four.
    assert len(archive) % 4 == 0


def test_the_archive_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / vagrant.KEY_FILE).write_text("private")
    (tmp_path / vagrant.KEY_FILE).chmod(0o600)
    (tmp_path / "box.img").write_bytes(b"QFI\xfb")
    target = tmp_path / "a.box"
    vagrant.pack(tmp_path, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        assert archive.getnames() == ["metadata.json", "Vagrantfile", "key", "box.img"]
        assert archive.getmember("key").mode == 0o600
        content = archive.extractfile("metadata.json")
        assert content is not None
        assert json.load(content) == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """Make the files of a box that `find` checks, in a temporary state directory."""
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path))
    home = vagrant.box_dir()
    home.mkdir()
    for name in ("a.box", "vmlinuz", "initrd"):
        (home / name).touch()
    box = Box("sandbox-1", str(home / "a.box"), str(home / "vmlinuz"), str(home / "initrd"), "quiet", 8080)
    (home / vagrant.DESCRIPTION_FILE).write_text(json.dumps(asdict(box)))
    return box


def test_a_box_is_found_again(made: Box) -> None:
    assert vagrant.find() == made


@pytest.mark.parametrize("gone", ["a.box", "vmlinuz", "initrd", vagrant.DESCRIPTION_FILE])
def test_a_box_without_a_part_is_none(made: Box, gone: str) -> None:
    (vagrant.box_dir() / gone).unlink()
    assert vagrant.find() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "a"}', "null"])
def test_a_damaged_description_is_no_box(made: Box, text: str) -> None:
    (vagrant.box_dir() / vagrant.DESCRIPTION_FILE).write_text(text)
    assert vagrant.find() is None


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert vagrant.main() == UnavailableError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "sudo" in captured.err


@pytest.mark.skipif(
    shutil.which("mke2fs") is None or shutil.which("debugfs") is None, reason="e2fsprogs is not on PATH"
)
def test_the_disk_has_a_journal_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vagrant, "DISK_SIZE", 16 * 1024 * 1024)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    vagrant.make_disk(source, tmp_path / "disk")
    look = subprocess.run(["debugfs", "-R", "features", tmp_path / "disk"], capture_output=True, text=True, check=True)
    assert "has_journal" in look.stdout
    look = subprocess.run(["debugfs", "-R", "cat file", tmp_path / "disk"], capture_output=True, text=True, check=True)
    assert look.stdout == "content"


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="e2fsprogs is not on PATH")
def test_what_does_not_fit_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vagrant, "DISK_SIZE", 4 * 1024 * 1024)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(6 * 1024 * 1024))
    with pytest.raises(ImageError, match="mke2fs failed"):
        vagrant.make_disk(source, tmp_path / "disk")


def test_the_init_is_where_the_initramfs_looks_for_it() -> None:
    text = (data_dir("vm") / "initramfs" / "init").read_text()
    assert f"/{vm.GUEST_HOME}/init" in text
    assert f"/{vm.GUEST_DIR} " in text
