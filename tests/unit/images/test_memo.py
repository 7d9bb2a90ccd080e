"""Remembered digests are those that would be computed, and never those of a changed file."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from sandbox.images import memo, recipe
from sandbox.state import paths
from sandbox.state.data import data_dir


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the data folders, with old change times, and a temporary state directory."""
    for name in ("images", "workloads", "vm"):
        shutil.copytree(data_dir(name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    monkeypatch.setattr(memo, "data_dir", lambda name: tmp_path / name)
    monkeypatch.setattr(recipe, "data_dir", lambda name: tmp_path / name)
    monkeypatch.setattr(memo, "_known", {})
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    paths.host_dir().mkdir(parents=True)
    monkeypatch.setattr(memo, "_SETTLED", -1.0)
    return tmp_path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each computation."""
    calls: list[int] = []
    compute = recipe.digests

    def digests() -> dict[recipe.Stage, str]:
        calls.append(1)
        return compute()

    monkeypatch.setattr(recipe, "digests", digests)
    return calls


def test_computed_once_and_the_same(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = recipe.digests()
    calls = counted(monkeypatch)
    assert memo.digests() == expected
    assert memo.digests() == expected
    memo._known.clear()  # as in another process
    assert memo.digests() == expected
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["workloads/servers/reactor.py", "vm/guest/init", "images/recipe.toml"])
def test_a_change_of_the_same_size_and_time_is_seen(sources: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = memo.digests()
    path = sources / name
    status = path.stat()
    text = path.read_bytes()
    time.sleep(0.02)  # beyond the granularity of the file system's clock
    path.write_bytes(text.replace(b"e", b"f", 1) if b"toml" not in name.encode() else text.replace(b"17040", b"17041"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    memo._known.clear()
    after = memo.digests()
    assert after != before
    assert after == recipe.digests()


def test_young_files_are_not_remembered(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "_SETTLED", 3600.0)
    memo.digests()
    assert not (paths.host_dir() / memo.MEMO_FILE).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"signature": 1}', "\xff"])
def test_a_broken_memo_is_no_memo(sources: Path, content: str) -> None:
    (paths.host_dir() / memo.MEMO_FILE).write_text(content, encoding="latin-1")
    assert memo.digests() == recipe.digests()


def test_without_a_place_to_keep_it(sources: Path) -> None:
    paths.host_dir().rmdir()
    assert memo.digests() == recipe.digests()


def test_added_and_removed_files_are_seen(sources: Path) -> None:
    before = memo.digests()
    extra = sources / "workloads" / "extra.py"
    extra.write_text("x = 1\n", encoding="ascii")
    assert memo.digests() != before
    extra.unlink()
    assert memo.digests() == before
