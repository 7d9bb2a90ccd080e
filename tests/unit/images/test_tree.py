"""Turning a tree into a root filesystem, tested on a small one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.images import tree
from sandbox.images.recipe import load


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("etc/apt/apt.conf.d", "var/log/apt", "run", "tmp", "usr/bin"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    made = tmp_path / "root"
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    (made / "etc/group").write_text("root:x:0:\n")
    (made / "etc/shadow").write_text("root:*:19000::::::\n")
    (made / "etc/shadow").chmod(0o640)
    (made / "etc/fstab").write_text("# unconfigured\n")
    (made / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (made / "etc/apt/apt.conf.d/99mmdebstrap").write_text('Acquire::http::Proxy "http://user:secret@proxy.example";\n')
    (made / "var/log/dpkg.log").write_text("log")
    (made / "run/left").write_text("x")
    return made


def test_the_layout(root: Path) -> None:
    layout = load().layout
    tree.apply_layout(root, layout)
    tree.apply_layout(root, layout)  # once more changes nothing
    assert (root / "etc/passwd").read_text().splitlines() == [
        "root:x:0:0::/root:/bin/bash",
        "sandbox:x:10001:10001::/tmp:/usr/sbin/nologin",
    ]
    assert "sandbox:x:10001:" in (root / "etc/group").read_text()
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o640
    assert (root / "etc/fstab").read_bytes() == b""
    assert not (root / "etc/resolv.conf").is_symlink()
    assert not (root / "etc/apt/apt.conf.d/99mmdebstrap").exists()
    assert list((root / "var/log").iterdir()) == []
    assert list((root / "run").iterdir()) == []
    for name in ("proc", "sys", "dev", "tmp", "run", "var/tmp"):
        assert (root / name).is_dir()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("path", ["/", "", "../x", "/etc/../../x"])
def test_no_path_of_the_recipe_leaves_the_root(root: Path, path: str) -> None:
    with pytest.raises(ImageError, match="not below the root"):
        tree.inside(root, path)
    with pytest.raises(ImageError):
        tree.remove(root, [path])


def test_links_are_removed_and_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    (root / "var/log/link").symlink_to(outside)
    tree.remove(root, ["/var/log/*"])
    assert (outside / "keep").exists()


def test_install_normalises_modes_and_leaves_caches(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub/__pycache__").mkdir(parents=True)
    (source / "sub/a.py").write_text("a")
    (source / "sub/a.py").chmod(0o600)
    (source / "run").write_text("#!")
    (source / "run").chmod(0o700)
    (source / "sub/__pycache__/a.pyc").write_text("x")
    tree.install(source, tmp_path / "target")
    found = {
        path.relative_to(tmp_path / "target").as_posix(): path.stat().st_mode & 0o777
        for path in (tmp_path / "target").rglob("*")
        if path.is_file()
    }
    assert found == {"run": 0o755, "sub/a.py": 0o644}


def test_times_are_clamped_and_older_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("x")
    (tmp_path / "old").write_text("x")
    os.utime(tmp_path / "old", (5, 5))
    (tmp_path / "link").symlink_to("nowhere")
    tree.clamp_times(tmp_path, 1000)
    assert {name: (tmp_path / name).lstat().st_mtime for name in ("new", "old", "link", ".")} == {
        "new": 1000,
        "old": 5,
        "link": 1000,
        ".": 1000,
    }


def test_a_listing_sees_every_kind_of_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    before = tree.listing(tmp_path)
    assert [json.loads(line)[0] for line in before] == ["file", "folder", "link"]
    os.utime(tmp_path / "file", (1, 1))
    assert tree.listing(tmp_path) == before
    (tmp_path / "file").write_text("y")
    assert tree.listing(tmp_path) != before
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o600)
    assert tree.listing(tmp_path) != before


def test_installed_packages(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    assert tree.installed_packages(tmp_path) == {}
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: tini\nStatus: install ok installed\nDescription: a\n tiny: init\nVersion: 0.19.0-1\n\n"
        "Package: half\n\nPackage: bash\nVersion: 5.2\n"
    )
    assert tree.installed_packages(tmp_path) == {"bash": "5.2", "tini": "0.19.0-1"}
