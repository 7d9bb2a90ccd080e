"""Names for sandboxes whose user gave none."""

from __future__ import annotations

import os

from sandbox.state import paths


def fresh_name(workload: str) -> str:
    """The workload's name and six hex digits, such as reactor-3fa9c1; cut so that the whole is a legal name.

    One that is in use is passed over. Two commands that draw the same at once are one in 16 million; the second is told
    that the name is taken.
    """
    while True:
        name = f"{workload[:56]}-{os.urandom(3).hex()}"
        if not os.path.lexists(paths.names_dir() / name):
            return name
