"""Generated names are valid and unused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.request import naming
from sandbox.spec import NAME_PATTERN


@pytest.mark.parametrize("workload", ["a", "reactor", "a" * 200])
def test_legal(workload: str) -> None:
    assert NAME_PATTERN.fullmatch(naming.fresh_name(workload))


def test_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "web-000001").touch()
    drawn = iter(["000001", "000002"])
    monkeypatch.setattr("os.urandom", lambda _count: bytes.fromhex(next(drawn)))
    assert naming.fresh_name("web") == "web-000002"
