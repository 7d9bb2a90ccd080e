"""What one look at the host found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One capability of this host.

    Attributes:
        name: its id, such as "docker.daemon".
        ok: whether it is there and works.
        detail: one line: the version or kind when it is there, the reason when it is not.
        remedy: one command or one line that mends it; empty when it is there.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
