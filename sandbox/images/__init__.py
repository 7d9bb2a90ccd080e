"""The root filesystem in its forms: a directory, a Docker image, a VM's kernel, initramfs and disk.

One recipe, built once, kept by the digest of what it is made from. A finished image appears under its name in one
step, so an interrupted build leaves nothing that could be taken for one; what it leaves is swept by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox import paths
from sandbox.errors import BusyError, ImageError, NotFoundError, SandboxError, UnavailableError
from sandbox.images import cache, dockerd
from sandbox.images.recipe import Form, Recipe, Stage, digests, load
from sandbox.images.workspace import busy, discard, explained, stale
from sandbox.store import Store, named_lock

__all__ = ["Form", "Image", "Item", "digest", "ensure", "find", "ls", "remove", "sweep", "verify"]

LOCK = "images"
MIN_REFERENCE = 4
"""Digits of a digest that a person must give at least."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """A form that is ready for use.

    Attributes:
        form: which.
        digest: 64 hex digits: what it was made from.
        path: ROOTFS: a directory to be used as a root, read-only. VM: a directory with `vmlinuz`, `initrd` and
            `disk.raw`. DOCKER: None.
        reference: DOCKER: the image's name in the daemon. Otherwise None.
        size: bytes.
    """

    form: Form
    digest: str
    path: Path | None
    reference: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """A row of the listing: an image, or a stage that images are made from.

    Attributes:
        stage: base, kernel, rootfs, docker or vm.
        digest: 64 hex digits.
        size: bytes.
        created: seconds since the epoch.
        current: whether the recipe and the workloads of this installation give this digest.
        path: its content on the disk; None for an image in Docker.
        reference: its name in Docker; None elsewhere.
        damage: what is wrong with it at a glance; None when nothing is.
    """

    stage: Stage
    digest: str
    size: int
    created: float
    current: bool
    path: Path | None
    reference: str | None
    damage: str | None


def digest(form: Form) -> str:
    """The digest that a form has, or will have, by the recipe and the workloads as they are now.

    Raises:
        ImageError: the installation is incomplete.
    """
    return digests()[Stage(form)]


def find(form: Form) -> Image | None:
    """The current image of a form; None when it is not built, damaged, or (Docker) no daemon answers.

    Raises:
        ImageError: the installation is incomplete.
    """
    wanted = digest(form)
    try:
        return _find(form, wanted)
    except SandboxError:
        return None


def ensure(form: Form, progress: Progress) -> Image:
    """The current image of a form, built if need be. Of several callers one builds and the others wait for it.

    Args:
        form: which.
        progress: takes short lines that say what is being done.

    Raises:
        UnavailableError: no root, no mmdebstrap, no Docker daemon.
        ImageError: it could not be built; nothing half-made is left.
        BusyError: it is damaged, but in use.
    """
    wanted = digest(form)
    found = _find(form, wanted)
    if found is not None:
        return found
    with _exclusive(progress):
        # The workloads may have changed while another build held the lock.
        recipe = load()
        current = digests(recipe)
        if (found := _find(form, current[Stage(form)])) is not None:
            return found
        _sweep(dry_run=False)
        _build(Stage(form), recipe, current, progress)
        found = _find(form, current[Stage(form)])
    if found is None:
        raise ImageError(f"the {form} image vanished right after it was built", "is another program cleaning up?")
    return found


def ls() -> tuple[list[Item], list[str]]:
    """Everything that is kept, the oldest first, and what could not be looked at (a line each).

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
    notes = [f"{directory} is not a whole image: sandbox images rm --broken" for directory in cache.broken()]
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
        notes.append(f"images in docker are not shown: {error.message}")
    return sorted(items, key=lambda item: item.created), notes


def verify(progress: Progress) -> list[str]:
    """Compare every image on the disk with what was built, byte by byte; a line per difference, none if all is well.

    Raises:
        ImageError: one cannot be read.
    """
    lines = [f"{directory} is not a whole image" for directory in cache.broken()]
    for entry in cache.entries():
        progress(f"{entry.directory.name}: comparing")
        lines += [f"{entry.directory.name}: {line}" for line in entry.differences()]
    return lines


def remove(*references: str, everything: bool = False, old: bool = False, dry_run: bool = False) -> list[str]:
    """Remove images and stages; those in use are kept and named in the error, after the others are removed.

    Args:
        references: digests or their beginnings, `STAGE-DIGEST` or `sandbox:DIGEST` names.
        everything: all there are.
        old: those that this installation's recipe and workloads would not give, and broken ones.
        dry_run: only say what would be removed.

    Returns:
        One line per thing removed (or that would be).

    Raises:
        NotFoundError: a reference fits none, or several.
        BusyError: something is in use, or a build is running.
        ImageError: the disk refuses, or something is mounted in there.
    """
    _need_root("removing images")
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
                kept.append(f"{_label(item)}: {error.message}")
        if everything or old:
            removed += [f"broken image {directory.name}" for directory in _remove_broken(dry_run=dry_run)]
        removed += _sweep(dry_run=dry_run)
    if kept:
        raise BusyError("kept " + "; ".join(kept), "stop and remove what uses them first")
    return removed


def sweep(*, dry_run: bool = False) -> list[str]:
    """Remove what interrupted builds left. While a build is running there is nothing to sweep.

    Returns:
        One line per thing removed (or that would be).

    Raises:
        ImageError: the disk refuses.
    """
    if not stale():
        return []
    try:
        with named_lock(LOCK, wait=False):
            return _sweep(dry_run=dry_run)
    except BusyError:
        return []


def _find(form: Form, wanted: str) -> Image | None:
    if form is Form.DOCKER:
        raw = dockerd.find(wanted)
        if raw is None:
            return None
        return Image(form, wanted, None, dockerd.reference(wanted), int(raw.get("Size") or 0))
    entry = cache.read(Stage(form), wanted)
    if entry is None or entry.damage() is not None:
        return None
    return Image(form, wanted, entry.path, None, entry.size)


def _build(stage: Stage, recipe: Recipe, current: dict[Stage, str], progress: Progress) -> None:
    """Build a stage, and first what is missing below it."""
    from sandbox.images import build

    def tell(line: str) -> None:
        progress(f"{stage}: {line}")

    below = {}
    for lower in build.BELOW[stage]:
        if (entry := _intact(lower, current[lower])) is None:
            _build(lower, recipe, current, progress)
            entry = cache.read(lower, current[lower])
        if entry is None:
            raise ImageError(f"the stage {lower} vanished right after it was built", "is another program cleaning up?")
        below[lower] = entry
    if stage is Stage.DOCKER:
        build.docker(current[stage], recipe, below[Stage.ROOTFS], tell)
        return
    if (damaged := cache.read(stage, current[stage])) is not None:
        tell(f"damaged ({damaged.damage()}), so it is built again")
        _refuse_if_used(damaged)
    begin = time.monotonic()
    entry = build.stage(stage, current[stage], recipe, below, tell)
    tell(f"built in {time.monotonic() - begin:.0f} s, {entry.size // 2**20} MiB, digest {entry.digest[: cache.DIGITS]}")


def _intact(stage: Stage, wanted: str) -> cache.Entry | None:
    entry = cache.read(stage, wanted)
    return entry if entry is not None and entry.damage() is None else None


@contextmanager
def _exclusive(progress: Progress) -> Iterator[None]:
    """Hold the lock of the images, and say so when it means waiting."""
    _need_root("building images")
    Store().ensure()
    with explained():
        paths.images_dir().mkdir(exist_ok=True, mode=0o711)
    try:
        with named_lock(LOCK, wait=False):
            yield
            return
    except _Waiting:
        raise
    except BusyError:
        progress("waiting for another command that builds images")
    with named_lock(LOCK):
        yield


def _need_root(what: str) -> None:
    import os

    if os.geteuid() != 0:
        raise UnavailableError(f"{what} needs root", "sudo sandbox images ...")
