"""`sandbox logs`: what a workload wrote."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime

import click

from sandbox.cli.completing import existing

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
def command(sandbox: str, follow: bool, tail: str, since: str | None) -> None:
    """Print what SANDBOX's workload wrote to its standard output and error, byte for byte.

    TIME is a duration before now, a date or time as of RFC 3339 (local time where it names no zone), or seconds since
    the epoch. Levels whose log has no times refuse --since: only container and gvisor keep them. With -f, Ctrl-C ends
    the following, not the workload.

    \b
    Examples:
      sandbox logs web
      sandbox logs -f --tail 20 web
      sandbox logs --since 1h30m web
    """
    from sandbox.lifecycle.find import get

    lines = parse_tail(tail)
    begin = parse_since(since, time.time()) if since is not None else None
    for chunk in get(sandbox).sandbox.logs(follow=follow, tail=lines, since=begin):
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()


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


def parse_since(text: str, now: float) -> float:
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
            f"--since {text[:_LONGEST]!r} is no time", "such as 10m, 1h30m, 2026-01-31T12:00:00Z or 1790000000"
        ) from None
