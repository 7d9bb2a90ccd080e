"""Keep the results of slow checks of this host in the state directory until the next boot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.errors import StoreError
from sandbox.state import paths
from sandbox.state.processid import boot_id
from sandbox.state.store import Store

VERSION = 1


def recall(name: str, key: str) -> dict[str, Any] | None:
    """Return the result kept under `name`, if it is of this boot and has this `key`; else None.

    Args:
        name: name of the check.
        key: what the result depends on besides the running kernel, such as the identity of a program.
    """
    try:
        raw = json.loads(_path(name).read_text(encoding="utf-8"))
        if (raw["version"], raw["boot_id"], raw["key"]) == (VERSION, boot_id(), key):
            return dict(raw["value"])
    except (OSError, ValueError, KeyError, TypeError):
        # Absent, of another version, or damaged: the check is run again.
        return None
    return None


def remember(name: str, key: str, value: Mapping[str, Any]) -> None:
    """Keep a result (of JSON types) until the next boot.

    If the state directory is not writable (we are not root, say), the next command runs the check again.
    """
    record = {"version": VERSION, "boot_id": boot_id(), "key": key, "value": dict(value)}
    with suppress(StoreError, OSError):
        Store().ensure()
        temporary = _path(f".{name}.{id(record):x}")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(_path(name))


def file_identity(path: str | Path) -> str:
    """Return a text that changes with the file: a program after an upgrade, a device node after its module's reload."""
    try:
        found = Path(path).stat()
    except OSError:
        return f"{path}: none"
    return f"{path}: {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _path(name: str) -> Path:
    return paths.host_dir() / f"{name}.json"
