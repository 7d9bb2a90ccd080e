"""The profile of system calls that a container gets in place of Docker's: the list of the namespace level's filter."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def profile() -> str:
    """The profile as JSON, for SecurityOpt of the create call; made by `python -m tools.seccomp`."""
    return Path(__file__).with_suffix(".json").read_text(encoding="ascii")
