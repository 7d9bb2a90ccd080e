"""The result of checking one capability of the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A capability of this host, present or missing.

    Attributes:
        name: id of the capability, such as "docker.daemon".
        ok: whether it is present and works.
        detail: one line: its version or kind, or the reason why it is missing.
        remedy: one command or line that provides it; empty if it is present.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
