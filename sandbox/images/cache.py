"""Finished stages on disk: one directory each, `STAGE-DIGEST`, with a manifest, a listing and the content."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.images.recipe import Stage
from sandbox.images.workspace import Workspace, discard, image_errors, publish
from sandbox.state import paths

VERSION = 1
MANIFEST_FILE = "manifest.json"
LISTING_FILE = "listing"
CONTENT = "tree"

DIGITS = 12
"""Number of hex digits of a digest in names."""

_ENTRY_NAME = re.compile(r"(base|kernel|rootfs|vm)-([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished stage.

    Attributes:
        stage: the stage.
        digest: digest of its sources, 64 hex digits (see recipe.digests).
        directory: its directory.
        size: bytes on disk.
        created: seconds since the epoch.
        content: SHA-256 of the listing, and so of every byte of the content.
        key_files: mode, size and modification time (ns), by relative path, of some files that every use needs.
        facts: package versions and the like, for people and `docker inspect`.
    """

    stage: Stage
    digest: str
    directory: Path
    size: int
    created: float
    content: str
    key_files: dict[str, list[int]]
    facts: dict[str, Any]

    @property
    def path(self) -> Path:
        """The directory of the content."""
        return self.directory / CONTENT

    def damage(self) -> str | None:
        """Find a key file that is missing or changed, by its status alone. None if there is none."""
        content = str(self.path)  # faster than a Path for each: every start does this
        for name, expected in self.key_files.items():
            path = f"{content}/{name}"
            try:
                status = os.lstat(path)
            except OSError as error:
                return f"{path}: {error.strerror}"
            if _status_key(status) != expected:
                return f"{path} was changed"
        return None

    def differences(self) -> list[str]:
        """Compare the content with what was built, byte by byte; return a line for each difference.

        Raises:
            ImageError: the listing cannot be read.
        """
        from sandbox.images import tree  # no start needs it

        with image_errors():
            recorded = (self.directory / LISTING_FILE).read_text(encoding="utf-8").splitlines()
            if tree.content_digest(recorded) != self.content:
                return [f"{LISTING_FILE} was changed, so the content cannot be compared with it"]
            found = tree.listing(self.path)
        before = {json.loads(line)[0]: line for line in recorded}
        after = {json.loads(line)[0]: line for line in found}
        lines = [f"{name} is missing" for name in before if name not in after]
        lines += [f"{name} was added" for name in after if name not in before]
        lines += [f"{name} was changed" for name in before if name in after and before[name] != after[name]]
        return sorted(lines)


def directory_of(stage: Stage, digest: str) -> Path:
    """Return the directory of a stage with that digest, existing or not."""
    return paths.images_dir() / f"{stage}-{digest[:DIGITS]}"


def read(stage: Stage, digest: str) -> Entry | None:
    """Return the entry of a stage; None if there is none, or its manifest is of another stage or digest."""
    found = _read(directory_of(stage, digest))
    return found if found is not None and found.digest == digest and found.stage is stage else None


def entries() -> list[Entry]:
    """Return all entries with a valid manifest, the oldest first."""
    found = [_read(directory) for directory in _directories()]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.created)


def broken() -> list[Path]:
    """Return the directories that have an entry's name, but no valid manifest."""
    return [directory for directory in _directories() if _read(directory) is None]


def commit(
    space: Workspace, stage: Stage, digest: str, key_files: Sequence[str], facts: dict[str, Any] | None = None
) -> Entry:
    """Turn a workspace's `result/tree` into an entry, in one step.

    Raises:
        ImageError: a key file is missing, or writing failed.
    """
    from sandbox.images import tree

    content = space.result / CONTENT
    with image_errors():
        lines = tree.listing(content)
        (space.result / LISTING_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        raw = {
            "version": VERSION,
            "stage": stage.value,
            "digest": digest,
            "created": time.time(),
            "size": tree.size(content),
            "content": tree.content_digest(lines),
            "key_files": {name: _status_key((content / name).lstat()) for name in key_files},
            "facts": facts or {},
        }
        (space.result / MANIFEST_FILE).write_text(json.dumps(raw), encoding="utf-8")
        target = directory_of(stage, digest)
        discard(target)
        publish(space, target)
    entry = read(stage, digest)
    assert entry is not None, target  # noqa: S101 - it was written above, under the lock
    return entry


def _directories() -> list[Path]:
    try:
        with os.scandir(paths.images_dir()) as found:
            return sorted(Path(item.path) for item in found if _ENTRY_NAME.fullmatch(item.name))
    except FileNotFoundError:
        return []


def _read(directory: Path) -> Entry | None:
    try:
        raw = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            return None
        return Entry(
            stage=Stage(raw["stage"]),
            digest=str(raw["digest"]),
            directory=directory,
            size=int(raw["size"]),
            created=float(raw["created"]),
            content=str(raw["content"]),
            key_files={str(name): [int(part) for part in parts] for name, parts in raw["key_files"].items()},
            facts=dict(raw["facts"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _status_key(status: os.stat_result) -> list[int]:
    # Directories and links are compared by type only: a mount or a listing may change a directory's time.
    if not stat.S_ISREG(status.st_mode):
        return [stat.S_IFMT(status.st_mode), 0, 0]
    return [status.st_mode, status.st_size, status.st_mtime_ns]
