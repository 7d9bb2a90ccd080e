"""Generate names for sandboxes that the user did not name."""

from __future__ import annotations

import os

from sandbox.state import paths


def fresh_name(workload: str) -> str:
    """Return an unused name: the workload's, cut if need be, and six hex digits, such as reactor-3fa9c1.

    The chance that two commands draw the same name at once is one in 16 million; the second then fails because the
    name is taken.
    """
    while True:
        name = f"{workload[:56]}-{os.urandom(3).hex()}"
        if not os.path.lexists(paths.names_dir() / name):
            return name
