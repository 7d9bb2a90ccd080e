"""Parse signals by name or number, as docker-kill(1) and kill(1) do."""

from __future__ import annotations

import difflib
import re
import signal

from sandbox.errors import SpecError

NAMES = {found.name.removeprefix("SIG"): int(found) for found in signal.Signals}
"""Numbers by name without SIG, for this kernel (signal(7))."""
_REAL_TIME = re.compile(r"(RTMIN|RTMAX)([+-][0-9]{1,2})?")


def parse(text: str) -> int:
    """Parse a signal: a name, with or without SIG, or a number.

    Raises:
        SpecError: there is no such signal; the hint has the nearest name.
    """
    name = text.upper().removeprefix("SIG")
    if name in NAMES:
        return NAMES[name]
    number = 0
    if re.fullmatch("[0-9]{1,3}", name):
        number = int(name)
    elif match := _REAL_TIME.fullmatch(name):
        number = NAMES[match[1]] + int(match[2] or 0)
        number = number if NAMES["RTMIN"] <= number <= NAMES["RTMAX"] else 0
    if not 1 <= number <= NAMES["RTMAX"]:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"a name such as TERM or HUP, or 1 to {NAMES['RTMAX']}"
        raise SpecError(f"there is no signal {text[:40]!r}", hint)
    return number
