"""Test the reader of the log: a tail by the lines of each stream, times, rotation during a read, truncated frames."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import EngineError
from sandbox.isolation import log
from sandbox.isolation.keeper import FRAME, LOG, LOST, MAGIC, OLDER, PART, STDERR, STDOUT
from sandbox.isolation.log import Piece, Reader

Written = Sequence[tuple[int, bytes]]


def write(directory: Path, pieces: Written, name: str = LOG, position: int = 0, at: int = 0) -> None:
    frames = (
        FRAME.pack(stream, len(data), (at + number) * 10**9) + data for number, (stream, data) in enumerate(pieces)
    )
    (directory / name).write_bytes(PART.pack(MAGIC, position) + b"".join(frames))


def read(directory: Path, **options: object) -> list[Piece]:
    return list(log.read(directory, running=lambda: False, **options))  # type: ignore[arg-type]


def text(pieces: Sequence[Piece], stream: int | None = None) -> bytes:
    return b"".join(piece.data for piece in pieces if stream in (None, piece.stream))


def lines_of(pieces: Written) -> list[tuple[int, bytes]]:
    """Return the lines of both streams in the order in which they begin: the model that `tail` is compared with."""
    lines: list[tuple[int, bytearray]] = []
    unfinished: dict[int, bytearray] = {}
    for stream, data in pieces:
        for part in data.splitlines(keepends=True):
            if stream not in unfinished:
                unfinished[stream] = bytearray()
                lines.append((stream, unfinished[stream]))
            unfinished[stream] += part
            if part.endswith(b"\n"):
                del unfinished[stream]
    return [(stream, bytes(line)) for stream, line in lines]


_PIECES = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.sampled_from([b"\n", b"a", b"bcd\n", b"\n\n", b"e\nf"])),
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces=_PIECES, lines=st.integers(0, 30))
def test_a_tail_is_the_last_lines_of_both_streams(tmp_path: Path, pieces: Written, lines: int) -> None:
    write(tmp_path, pieces)
    wanted = lines_of(pieces)
    wanted = wanted[len(wanted) - min(lines, len(wanted)) :]
    found = read(tmp_path, tail=lines)
    for stream in (STDOUT, STDERR):
        assert text(found, stream) == b"".join(line for of, line in wanted if of == stream)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces=_PIECES)
def test_all_of_it_is_as_it_was_written(tmp_path: Path, pieces: Written) -> None:
    write(tmp_path, pieces)
    assert [(piece.stream, piece.data) for piece in read(tmp_path)] == list(pieces)


def test_times(tmp_path: Path) -> None:
    write(tmp_path, [(STDOUT, b"a"), (STDERR, b"b"), (STDOUT, b"c"), (STDOUT, b"d")])
    assert text(read(tmp_path, since=1)) == b"bcd"
    assert text(read(tmp_path, until=2)) == b"abc"
    assert text(read(tmp_path, since=1, until=2)) == b"bc"
    assert text(read(tmp_path, since=0.5, until=0.9)) == b""
    assert [piece.time for piece in read(tmp_path)] == [0, 1, 2, 3]


def test_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) == read(tmp_path, tail=3) == []


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"a line of text, as an older version kept it\n")
    with pytest.raises(EngineError, match="another version"):
        read(tmp_path)


def test_a_frame_that_was_cut_off_is_given_as_far_as_it_goes(tmp_path: Path) -> None:
    write(tmp_path, [(STDOUT, b"whole"), (STDOUT, b"half of it")])
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole[:-3])
    assert text(read(tmp_path)) == b"wholehalf of"
    (tmp_path / LOG).write_bytes(whole[: -len(b"half of it") - 1])
    assert text(read(tmp_path)) == b"whole"


def test_both_files_are_read_and_what_was_dropped_is_told(tmp_path: Path) -> None:
    write(tmp_path, [(STDOUT, b"second")], OLDER, position=100)
    write(tmp_path, [(STDOUT, b"third")], LOG, position=106)
    dropped: list[int] = []
    assert text(read(tmp_path, dropped=dropped.append)) == b"secondthird"
    assert dropped == [100]
    assert text(read(tmp_path, dropped=dropped.append, tail=1)) == b"secondthird"
    assert dropped == [100], "a tail has no word of what came before it"


def test_what_the_disk_had_no_room_for_is_told_at_its_place(tmp_path: Path) -> None:
    frames = FRAME.pack(STDOUT, 1, 0) + b"a" + FRAME.pack(LOST, 5000, 0) + FRAME.pack(STDOUT, 1, 0) + b"b"
    (tmp_path / LOG).write_bytes(PART.pack(MAGIC, 0) + frames)
    seen: list[object] = []
    for piece in log.read(tmp_path, running=lambda: False, dropped=seen.append):
        seen.append(piece.data)
    assert seen == [b"a", 5000, b"b"]


def test_a_rotation_under_the_reader(tmp_path: Path) -> None:
    dropped: list[int] = []
    with Reader(tmp_path, dropped.append) as reader:
        assert list(reader.read()) == []
        write(tmp_path, [(STDOUT, b"one")])
        assert text(list(reader.read())) == b"one"
        (tmp_path / LOG).rename(tmp_path / OLDER)
        assert list(reader.read()) == [], "in the middle of a rotation"
        write(tmp_path, [(STDOUT, b"two")], position=3)
        assert text(list(reader.read())) == b"two"
        (tmp_path / LOG).rename(tmp_path / OLDER)
        with (tmp_path / OLDER).open("ab") as older:
            older.write(FRAME.pack(STDOUT, 2, 0) + b"2b")
        write(tmp_path, [(STDOUT, b"three")], position=8)
        assert text(list(reader.read())) == b"2bthree", "the end of the older file comes first"
        write(tmp_path, [(STDOUT, b"eight")], OLDER, position=50)
        (tmp_path / LOG).unlink()
        write(tmp_path, [(STDOUT, b"nine")], position=55)
        assert text(list(reader.read())) == b"eightnine"
        assert dropped == [50 - 13]
        assert reader.position == 59


def test_following_ends_with_the_workload_and_misses_nothing(tmp_path: Path) -> None:
    write(tmp_path, [(STDOUT, b"one\n")])
    answers = iter([True, True, False])

    def running() -> bool:
        answer = next(answers)
        if not answer:  # written after the last check, and before the keeper exited
            write(tmp_path, [(STDOUT, b"one\n"), (STDERR, b"two\n")])
        return answer

    found = list(log.read(tmp_path, follow=True, running=running))
    assert [(piece.stream, piece.data) for piece in found] == [(STDOUT, b"one\n"), (STDERR, b"two\n")]


def test_following_ends_at_until(tmp_path: Path) -> None:
    write(tmp_path, [(STDOUT, b"one\n")], at=int(time.time()))
    begin = time.monotonic()
    found = list(log.read(tmp_path, follow=True, until=time.time() + 0.2, running=lambda: True))
    assert text(found) == b"one\n"
    assert time.monotonic() - begin < 2
