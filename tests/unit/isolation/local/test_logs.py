"""The tail of a log, found from its end; and how large a log may become."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.isolation.local import logs
from sandbox.spec import MIB, Mount, SandboxSpec


def tail(path: Path, lines: int | None) -> bytes:
    return b"".join(logs.read(path, tail=lines, follow=False, running=lambda: False))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(st.sampled_from([b"\n", b"a", b"bcd\n", b"\n\n"]), max_size=30), lines=st.integers(0, 40))
def test_as_the_lines_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], lines: int
) -> None:
    text = b"".join(parts)
    path = tmp_path / "log"
    path.write_bytes(text)
    with monkeypatch.context() as patch:
        patch.setattr(logs, "CHUNK", 3)
        whole = text.splitlines(keepends=True)
        assert tail(path, lines) == b"".join(whole[len(whole) - min(lines, len(whole)) :])


def test_all_of_it_and_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path, None) == tail(path, 3) == b""
    path.write_bytes(b"x" * 200_000)
    assert len(tail(path, None)) == len(tail(path, 1)) == 200_000
    assert tail(path, 0) == b""


def test_followed_until_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    words = iter([b"first\n", b"second\n", b"last\n"])

    def running() -> bool:
        word = next(words, b"")
        with path.open("ab") as stream:
            stream.write(word)
        return word not in (b"last\n", b"")

    # The last words are written between the question whether it runs and the read.
    assert b"".join(logs.read(path, tail=1, follow=True, running=running)) == b"old\nfirst\nsecond\nlast\n"


@pytest.mark.parametrize(
    ("disk", "mounts", "cap"),
    [
        (8 * MIB, (), 64 * MIB),
        (100 * MIB, (), 100 * MIB),
        (8 * MIB, (Mount("/srv", "/data", read_only=True),), 64 * MIB),
        (8 * MIB, (Mount("/srv", "/data"),), None),
    ],
)
def test_the_cap(disk: int, mounts: tuple[Mount, ...], cap: int | None) -> None:
    spec = SandboxSpec("a", "reactor", "namespace", ("true",), disk=disk, mounts=mounts)
    assert logs.cap(spec) == cap
