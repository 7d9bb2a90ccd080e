"""`sandbox logs`: what a workload wrote."""

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
"""Characters of a time that anybody would write."""


@click.command()
@click.argument("sandbox", shell_complete=existing)
@click.option("-f", "--follow", is_flag=True, help="Go on until the workload ends.")
@click.option("-n", "--tail", default="all", show_default=True, metavar="N", help="Begin with the last N lines.")
@click.option("--since", metavar="TIME", help="Leave out what is older: 10m, 1h30m, 2026-01-31T12:00:00Z, 1790000000.")
@click.option("--until", metavar="TIME", help="Leave out what is newer.")
@click.option("-t", "--timestamps", is_flag=True, help="Print before each line when it was written.")
def command(sandbox: str, follow: bool, tail: str, since: str | None, until: str | None, timestamps: bool) -> None:
    """Print what SANDBOX's workload wrote: its standard output and error to ours, byte for byte.

    TIME is a duration before now, a date or time as of RFC 3339 (local time where it names no zone), or seconds since
    the epoch. With -f, Ctrl-C ends the following, not the workload. The log keeps the last 32 to 64 MiB; where it has
    dropped some, a line on standard error says how much.

    \b
    Examples:
      sandbox logs web
      sandbox logs -f --tail 20 web
      sandbox logs -t --since 1h30m --until 1h web
    """
    from sandbox.lifecycle.manager import Manager

    now = time.time()
    lines = parse_tail(tail)
    begin = parse_time("--since", since, now) if since is not None else None
    end = parse_time("--until", until, now) if until is not None else None
    pieces = (
        Manager().get(sandbox).sandbox.pieces(follow=follow, tail=lines, since=begin, until=end, dropped=tell_dropped)
    )
    print_pieces(stamped(pieces) if timestamps else pieces)


def stamped(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Pieces with a time before each line of either stream, as of RFC 3339: when the line's first byte came."""
    middle: set[int] = set()
    """Streams that are in the middle of a line."""
    for piece in pieces:
        stamp = datetime.fromtimestamp(piece.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ ").encode("ascii")
        text, end = (piece.data[:-1], b"\n") if piece.data.endswith(b"\n") else (piece.data, b"")
        first = b"" if piece.stream in middle else stamp
        middle = middle - {piece.stream} if end else middle | {piece.stream}
        yield piece._replace(data=first + text.replace(b"\n", b"\n" + stamp) + end)


def parse_tail(text: str) -> int | None:
    """A number of lines; None for `all`.

    Raises:
        SpecError: neither.
    """
    from sandbox.errors import SpecError

    if text == "all":
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise SpecError(f"--tail {text[:_LONGEST]!r} is no number of lines", "such as 20, or all")
    return int(text)


def parse_time(option: str, text: str, now: float) -> float:
    """A time in seconds since the epoch, from a duration before `now`, a time as of RFC 3339, or such seconds.

    Raises:
        SpecError: none of them.
    """
    from sandbox.errors import SpecError

    if _EPOCH.fullmatch(text):
        return float(text)
    if len(text) <= _LONGEST and re.fullmatch(f"(?:{_PART})+", text):
        return now - sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
    try:
        # Without a zone it is local time, as docker-logs(1) has it.
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise SpecError(
            f"{option} {text[:_LONGEST]!r} is no time", "such as 10m, 1h30m, 2026-01-31T12:00:00Z or 1790000000"
        ) from None
