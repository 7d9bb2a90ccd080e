"""List, verify and remove images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import BusyError, NotFoundError, SandboxError
from sandbox.images import cache, dockerd
from sandbox.images.locking import LOCK, need_root, refuse_if_used, sweep_locked
from sandbox.images.recipe import Stage, digests
from sandbox.images.workspace import discard, stale
from sandbox.state.store import named_lock

MIN_REFERENCE = 4
"""The least number of digits in an abbreviated digest."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A row of the listing: an image, or a stage that images are built from.

    Attributes:
        stage: base, kernel, rootfs, docker or vm.
        digest: 64 hex digits.
        size: bytes.
        created: seconds since the epoch.
        current: whether it is of the current recipe and workloads.
        path: its content on disk; None for an image in Docker.
        reference: its name in Docker; None for one on disk.
        damage: a key file that is missing or changed; None if there is none.
    """

    stage: Stage
    digest: str
    size: int
    created: float
    current: bool
    path: Path | None
    reference: str | None
    damage: str | None


def ls() -> tuple[list[Item], list[str]]:
    """List all images and stages, the oldest first, and a line for each place that could not be listed.

    Raises:
        ImageError: the installation is incomplete.
    """
    current = digests()
    items = [
        Item(
            stage=entry.stage,
            digest=entry.digest,
            size=entry.size,
            created=entry.created,
            current=current[entry.stage] == entry.digest,
            path=entry.path,
            reference=None,
            damage=entry.damage(),
        )
        for entry in cache.entries()
    ]
    notes = [f"{directory} is not a complete image: sandbox images rm --old removes it" for directory in cache.broken()]
    try:
        for raw in dockerd.images():
            labels = raw.get("Labels") or {}
            found = str(labels.get(dockerd.LABEL_DIGEST))
            items.append(
                Item(
                    stage=Stage.DOCKER,
                    digest=found,
                    size=int(raw.get("Size") or 0),
                    created=float(raw.get("Created") or 0),
                    current=current[Stage.DOCKER] == found,
                    path=None,
                    reference=dockerd.reference(found),
                    damage=None,
                )
            )
    except SandboxError as error:
        notes.append(f"images in Docker are not listed: {error.message}")
    return sorted(items, key=lambda item: item.created), notes


def verify(progress: Progress) -> list[str]:
    """Compare every image on disk with what was built, byte by byte; return a line for each difference.

    Raises:
        ImageError: one cannot be read.
    """
    lines = [f"{directory} is not a complete image" for directory in cache.broken()]
    for entry in cache.entries():
        progress(f"{entry.directory.name}: comparing")
        lines += [f"{entry.directory.name}: {line}" for line in entry.differences()]
    return lines


@dataclass(frozen=True, slots=True)
class Removal:
    """The result of a removal.

    Attributes:
        removed: a line for each image removed (or that would be).
        kept: a line for each image in use, with its users.
    """

    removed: list[str]
    kept: list[str]


def remove(*references: str, everything: bool = False, old: bool = False, dry_run: bool = False) -> Removal:
    """Remove images and stages; those in use are kept.

    Args:
        references: digests or their beginnings, `STAGE-DIGEST` or `sandbox:DIGEST` names.
        everything: remove all of them.
        old: remove those that are not of the current recipe and workloads, and incomplete ones.
        dry_run: only say what would be removed.

    Raises:
        NotFoundError: a reference matches none, or several.
        BusyError: a build is running.
        ImageError: a file cannot be removed, or something is mounted below it.
    """
    need_root("removing images")
    with named_lock(LOCK, wait=False):
        items, _ = ls()
        chosen = [item for item in items if everything or (old and not item.current)]
        chosen += [item for reference in references if (item := _select(items, reference)) not in chosen]
        removed, kept = [], []
        for item in chosen:
            try:
                _remove(item, dry_run=dry_run)
                removed.append(_label(item))
            except BusyError as error:
                kept.append(error.message)
        if everything or old:
            removed += [f"incomplete image {directory.name}" for directory in _remove_broken(dry_run=dry_run)]
        removed += sweep_locked(dry_run=dry_run)
    return Removal(removed, kept)


def prune(*, dry_run: bool = False) -> list[str]:
    """Remove what interrupted builds left. Does nothing while a build is running.

    Returns:
        One line for each directory removed (or that would be).

    Raises:
        ImageError: a directory cannot be removed.
    """
    if not stale():
        return []
    try:
        with named_lock(LOCK, wait=False):
            return sweep_locked(dry_run=dry_run)
    except BusyError:
        return []


def _label(item: Item) -> str:
    where = f" {item.reference}" if item.reference else ""
    return f"image {item.stage}-{item.digest[: cache.DIGITS]}{where}"


def _select(items: list[Item], reference: str) -> Item:
    """Return the only item that a reference matches.

    Raises:
        NotFoundError: it matches none, or several.
    """
    matches = [item for item in items if _fits(item, reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotFoundError(
            f"{reference!r} matches {len(matches)} images", "give one of " + ", ".join(map(_name, matches))
        )
    raise NotFoundError(f"there is no image {reference!r}", "sandbox images ls lists all")


def _fits(item: Item, reference: str) -> bool:
    stage, dash, digits = reference.rpartition("-")
    if reference == item.reference:
        return True
    if dash and stage != item.stage:
        return False
    return len(digits) >= MIN_REFERENCE and item.digest.startswith(digits)


def _name(item: Item) -> str:
    return f"{item.stage}-{item.digest[: cache.DIGITS]}"


def _remove(item: Item, *, dry_run: bool) -> None:
    if item.reference is not None:
        if not dry_run:
            dockerd.remove(item.reference)
        return
    entry = cache.read(item.stage, item.digest)
    if entry is None:
        return
    refuse_if_used(entry)
    if not dry_run:
        discard(entry.directory)


def _remove_broken(*, dry_run: bool) -> list[Path]:
    found = cache.broken()
    for directory in found:
        if not dry_run:
            discard(directory)
    return found
