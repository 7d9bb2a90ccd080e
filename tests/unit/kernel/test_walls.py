"""Test the look-up of a program as by execvp(3), whose failure is reported before the init starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandbox.kernel import walls


@pytest.fixture
def path(tmp_path: Path) -> str:
    for directory in ("first", "second"):
        (tmp_path / directory).mkdir()
    (tmp_path / "first" / "text").write_text("no program")
    for name in ("second/program", "second/text"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "first" / "directory").mkdir()
    return f"{tmp_path}/first:{tmp_path}/second"


@pytest.mark.parametrize("name", ["program", "text", "/bin/sh"])
def test_what_can_be_executed(path: str, name: str) -> None:
    walls.check_program(name, path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("nosuch", errno.ENOENT),
        ("/nosuch", errno.ENOENT),
        ("second/program", errno.ENOENT),
        ("directory", errno.EACCES),
        ("/etc", errno.EACCES),
        ("/etc/passwd", errno.EACCES),
    ],
)
def test_what_cannot(path: str, name: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        walls.check_program(name, path)
    assert caught.value.errno == number
