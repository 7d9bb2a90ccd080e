"""`sandbox logs`: print a workload's output."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from sandbox.cli.completing import existing
from sandbox.cli.output import print_pieces, tell_dropped

if TYPE_CHECKING:
    from sandbox.isolation.log import Piece

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)"
_EPOCH = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_LONGEST = 40
"""The most characters of a TIME."""


@click.command()
@click.argument("sandbox", shell_complete=existing)
@click.option("-f", "--follow", is_flag=True, help="Wait for more output until the workload ends.")
@click.option("-n", "--tail", default="all", show_default=True, metavar="N", help="Begin with the last N lines.")
@click.option("--since", metavar="TIME", help="Only newer output: 10m, 1h30m, 2026-01-31T12:00:00Z, 1790000000.")
@click.option("--until", metavar="TIME", help="Only older output.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with the time at which it was written.")
def command(sandbox: str, follow: bool, tail: str, since: str | None, until: str | None, timestamps: bool) -> None:
    """Print the output of SANDBOX's workload.

    Its standard output and standard error are copied to those of this command, byte for byte. TIME is a duration before
    now, a date or time in RFC 3339 format (local time without a zone), or seconds since the epoch. With -f, Ctrl-C ends
    this command only, not the workload. The log keeps the last 32 to 64 MiB; if older output was dropped, a line on
    standard error says how much.

    \b
    Examples:
      sandbox logs web
      sandbox logs -f --tail 20 web
      sandbox logs -t --since 1h30m --until 1h web
    """
    from sandbox.lifecycle.find import get

    now = time.time()
    lines = parse_tail(tail)
    begin = parse_time("--since", since, now) if since is not None else None
    end = parse_time("--until", until, now) if until is not None else None
    pieces = get(sandbox).sandbox.pieces(follow=follow, tail=lines, since=begin, until=end, dropped=tell_dropped)
    print_pieces(stamped(pieces) if timestamps else pieces)


def stamped(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces with the time of its first byte, in RFC 3339 format, before each line of either stream."""
    middle: set[int] = set()
    """Streams that are in the middle of a line."""
    for piece in pieces:
        stamp = datetime.fromtimestamp(piece.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode("ascii")
        text, end = (piece.data[:-1], b"\n") if piece.data.endswith(b"\n") else (piece.data, b"")
        first = b"" if piece.stream in middle else stamp
        middle = middle - {piece.stream} if end else middle | {piece.stream}
        yield piece._replace(data=first + text.replace(b"\n", b"\n" + stamp) + end)


def parse_tail(text: str) -> int | None:
    """Parse a number of lines; None stands for `all`.

    Raises:
        SpecError: it is neither.
    """
    from sandbox.errors import SpecError

    if text == "all":
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise SpecError(f"--tail {text[:_LONGEST]!r} is not a number of lines", "such as 20, or all")
    return int(text)


def parse_time(option: str, text: str, now: float) -> float:
    """Parse a TIME: a duration before `now`, a time in RFC 3339 format, or seconds; return seconds since the epoch.

    Raises:
        SpecError: it is none of them.
    """
    from sandbox.errors import SpecError

    if _EPOCH.fullmatch(text):
        return float(text)
    if len(text) <= _LONGEST and re.fullmatch(f"(?:{_PART})+", text):
        return now - sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    try:
        # Without a zone it is local time, as for docker-logs(1).
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise SpecError(
            f"{option} {text[:_LONGEST]!r} is not a time", "such as 10m, 1h30m, 2026-01-31T12:00:00Z or 1790000000"
        ) from None
