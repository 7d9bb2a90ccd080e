"""Digests remembered: hashing every source file anew would be a tenth of a namespace's start.

What was hashed is told by its status: path, inode, mode, size and times of every file. The change time of a file
(ctime) cannot be set from outside, so a file that was changed has another one, unless it was changed within the clock's
granularity of being read. A digest of files that young is therefore not remembered (what git calls a racy index).
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress

from sandbox.images import recipe
from sandbox.images.recipe import SKIPPED, Stage
from sandbox.state import paths
from sandbox.state.data import data_dir

MEMO_FILE = "digests.json"
_SETTLED = 2.0
"""Seconds after its last change from which on a file counts as settled; file systems' clocks tick in milliseconds."""

_known: dict[str, dict[Stage, str]] = {}


def digests() -> dict[Stage, str]:
    """As `recipe.digests()`, which is asked only when a source has changed since the last time.

    Raises:
        ImageError, UnavailableError
    """
    try:
        signature, youngest = _signature()
    except OSError:
        return recipe.digests()  # it says what is missing
    if (found := _known.get(signature) or _recall(signature)) is None:
        found = recipe.digests()
        if time.time() - youngest > _SETTLED:
            _remember(signature, found)
    _known[signature] = found
    return found


def _signature() -> tuple[str, float]:
    """The status of everything that goes into a digest, and the latest change time in seconds."""
    images, workloads, guest = data_dir("images"), data_dir("workloads"), data_dir("vm")
    found: list[tuple[str, os.stat_result]] = []
    for path in map(str, (images / recipe.RECIPE_FILE, *recipe.code_files())):
        with suppress(FileNotFoundError):
            found.append((path, os.stat(path)))
    _walk(str(workloads), found)
    _walk(str(guest), found)
    lines = [f"{recipe.BUILDER} {os.uname().machine} {__file__}"]
    for name, status in found:
        fields = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        lines.append(f"{name}\0{fields}")
    youngest = max(status.st_ctime for _, status in found)
    return "\n".join(lines), youngest


def _walk(folder: str, found: list[tuple[str, os.stat_result]]) -> None:
    """Add the status of each folder and file below, links not followed, as `recipe.source_files` would read them."""
    with os.scandir(folder) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        name = entry.name
        if name in SKIPPED or name.startswith(".") or name.endswith(".pyc"):
            continue
        found.append((entry.path, entry.stat(follow_symlinks=False)))
        if entry.is_dir(follow_symlinks=False):
            _walk(entry.path, found)


def _recall(signature: str) -> dict[Stage, str] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        raw = json.loads((paths.host_dir() / MEMO_FILE).read_text(encoding="ascii"))
        if raw["signature"] == signature:
            return {Stage(name): str(digest) for name, digest in raw["digests"].items()}
    return None


def _remember(signature: str, found: dict[Stage, str]) -> None:
    target = paths.host_dir() / MEMO_FILE
    temporary = target.with_name(f".{MEMO_FILE}.{os.getpid()}")
    # Where it cannot be kept (no such directory yet, another user, a full disk) it is found out again the next time.
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps({"signature": signature, "digests": found}), encoding="ascii")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
