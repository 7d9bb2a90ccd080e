"""Names for sandboxes whose user gave none."""

from __future__ import annotations

import secrets


def fresh_name(workload: str) -> str:
    """The workload's name and four hex digits, such as reactor-3fa9; cut so that the whole is a legal name."""
    return f"{workload[:58]}-{secrets.token_hex(2)}"
