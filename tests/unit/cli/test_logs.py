"""Test the times that `sandbox logs -t` prints before each line."""

from __future__ import annotations

from sandbox.cli.logs import stamped
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.log import Piece

AT = 1769860800.25
STAMP = b"2026-01-31T12:00:00.250000Z "


def test_each_line_has_the_time_of_its_first_byte() -> None:
    pieces = [
        Piece(STDOUT, AT, b"one\ntw"),
        Piece(STDERR, AT, b"\n\xff\r"),
        Piece(STDOUT, AT + 60, b"o\n"),
        Piece(STDERR, AT + 60, b"\nend"),
    ]
    found = [(piece.stream, piece.data) for piece in stamped(pieces)]
    assert found == [
        (STDOUT, STAMP + b"one\n" + STAMP + b"tw"),
        (STDERR, STAMP + b"\n" + STAMP + b"\xff\r"),
        (STDOUT, b"o\n"),
        (STDERR, b"\n" + STAMP.replace(b"12:00", b"12:01") + b"end"),
    ]
