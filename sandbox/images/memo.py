"""Remember the digests: hashing every source file would take a tenth of a namespace sandbox's start.

The key is the status of the files: path, inode, mode, size and times of each. A program cannot set a file's change time
(ctime), so a changed file has another one, unless the change came within the clock's granularity after the read. So the
digest of files that were changed just now is not remembered (git calls this a racy index).
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
"""Seconds after its last change until a file's digest may be remembered; clocks of file systems tick in ms."""

_known: dict[str, dict[Stage, str]] = {}


def digests() -> dict[Stage, str]:
    """Return what `recipe.digests()` does; it is called only if a source has changed since the last time.

    Raises:
        ImageError, UnavailableError
    """
    try:
        signature, youngest = _signature()
    except OSError:
        return recipe.digests()  # its error says what is missing
    if (found := _known.get(signature) or _recall(signature)) is None:
        found = recipe.digests()
        if time.time() - youngest > _SETTLED:
            _remember(signature, found)
    _known[signature] = found
    return found


def _signature() -> tuple[str, float]:
    """Return the status of everything that goes into a digest, and the latest change time in seconds."""
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
    """Add the status of each directory and file that `recipe.source_files` would read, without following links."""
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
    # If it cannot be kept (no such directory yet, another user, a full disk), it is computed again the next time.
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps({"signature": signature, "digests": found}), encoding="ascii")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
