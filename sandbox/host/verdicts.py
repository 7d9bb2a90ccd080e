"""Verdicts about this host that were dear to reach, kept in the state directory until the host boots again."""

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
    """What was remembered under `name`, if it holds for this boot and this `key`; else None.

    Args:
        name: the verdict.
        key: whatever the verdict depends on besides the running kernel, such as a program's identity.
    """
    try:
        raw = json.loads(_path(name).read_text(encoding="utf-8"))
        if (raw["version"], raw["boot_id"], raw["key"]) == (VERSION, boot_id(), key):
            return dict(raw["value"])
    except (OSError, ValueError, KeyError, TypeError):
        # Absent, of another version, or damaged: the verdict is simply found anew.
        return None
    return None


def remember(name: str, key: str, value: Mapping[str, Any]) -> None:
    """Keep a verdict (JSON types) for the rest of this boot.

    A state directory that cannot be written (we are not root, say) only means that the next command asks again.
    """
    record = {"version": VERSION, "boot_id": boot_id(), "key": key, "value": dict(value)}
    with suppress(StoreError, OSError):
        Store().ensure()
        temporary = _path(f".{name}.{id(record):x}")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(_path(name))


def file_identity(path: str | Path) -> str:
    """Tells a file from what it was before: a program after an upgrade, a device node after its module's reload."""
    try:
        found = Path(path).stat()
    except OSError:
        return f"{path}: none"
    return f"{path}: {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _path(name: str) -> Path:
    return paths.host_dir() / f"{name}.json"
