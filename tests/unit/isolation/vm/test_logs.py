"""The workload's log in its parts: whole, and the end of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.isolation.vm import logs


def parts_of(directory: Path, texts: list[bytes]) -> Path:
    """A log whose last text is the newest part; virtlogd numbers the older ones from the youngest on."""
    for age, text in enumerate(reversed(texts[:-1])):
        (directory / f"log.{age}").write_bytes(text)
    (directory / "log").write_bytes(texts[-1])
    return directory / "log"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from([b"a", b"bc", b"\n"]), max_size=8).map(b"".join), min_size=1, max_size=4),
       st.integers(0, 9))  # fmt: skip
def test_the_tail_is_the_last_lines(texts: list[bytes], lines: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        log = parts_of(Path(name), texts)
        whole = b"".join(texts)
        assert b"".join(logs.read(log, tail=None, follow=None)) == whole
        wanted = b"".join(whole.splitlines(keepends=True)[-lines:]) if lines else b""
        assert b"".join(logs.read(log, tail=lines, follow=None)) == wanted


def test_a_tail_of_long_lines(tmp_path: Path) -> None:
    log = parts_of(tmp_path, [b"x" * 200_000 + b"\n" + b"y" * 100_000, b"y" * 70_000 + b"\nend\n"])
    assert b"".join(logs.read(log, tail=1, follow=None)) == b"end\n"
    assert len(b"".join(logs.read(log, tail=2, follow=None))) == 170_000 + 5


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert list(logs.read(tmp_path / "log", tail=3, follow=None)) == []


def test_what_comes_later_and_in_a_new_part_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH", 0.0)
    log = parts_of(tmp_path, [b"one\n"])
    asked = 0

    def alive() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            with log.open("ab") as file:
                file.write(b"two\n")
        if asked == 2:
            log.rename(tmp_path / "log.0")
            log.write_bytes(b"three\n")
        return asked < 4

    assert b"".join(logs.read(log, tail=None, follow=alive)) == b"one\ntwo\nthree\n"
