"""Find the image of a form, which is fast, and build it if it is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ImageError, SandboxError
from sandbox.images import cache, memo
from sandbox.images.locking import exclusive, refuse_if_used, sweep_locked
from sandbox.images.recipe import Form, Recipe, Stage, digests, load

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is ready for use.

    Attributes:
        form: its form.
        digest: digest of its sources, 64 hex digits.
        path: for ROOTFS a directory to use as a root, read-only; for VM a directory with `vmlinuz`, `initrd` and
            `disk.raw`; None for DOCKER.
        reference: for DOCKER the image's name in the daemon, otherwise None.
        size: bytes.
    """

    form: Form
    digest: str
    path: Path | None
    reference: str | None
    size: int


def digest(form: Form) -> str:
    """Return the digest of a form for the recipe and the workloads as they are now, built or not.

    Raises:
        ImageError: the installation is incomplete.
    """
    return memo.digests()[Stage(form)]


def find(form: Form) -> Image | None:
    """Return the current image of a form; None if it is not built or damaged, or no Docker daemon answers.

    Raises:
        ImageError: the installation is incomplete.
    """
    wanted = digest(form)
    try:
        return _find(form, wanted)
    except SandboxError:
        return None


def ensure(form: Form, progress: Progress) -> Image:
    """Return the current image of a form; build it if it is missing. Of several callers one builds, the others wait.

    Args:
        form: the form.
        progress: called with short lines that say what is being done.

    Raises:
        UnavailableError: we are not root, or mmdebstrap or the Docker daemon is missing.
        ImageError: it could not be built; nothing of it is left.
        BusyError: it is damaged, but in use.
    """
    wanted = digest(form)
    found = _find(form, wanted)
    if found is not None:
        return found
    with exclusive(progress):
        # The workloads may have changed while another build held the lock.
        recipe = load()
        current = digests(recipe)
        if (found := _find(form, current[Stage(form)])) is not None:
            return found
        sweep_locked(dry_run=False)
        _build(Stage(form), recipe, current, progress)
        found = _find(form, current[Stage(form)])
    if found is None:
        raise ImageError(f"the {form} image vanished right after it was built", "did another program remove it?")
    return found


def _find(form: Form, wanted: str) -> Image | None:
    if form is Form.DOCKER:
        from sandbox.images import dockerd  # the other forms do not need it

        raw = dockerd.find(wanted)
        if raw is None:
            return None
        return Image(form, wanted, None, dockerd.reference(wanted), int(raw.get("Size") or 0))
    entry = cache.read(Stage(form), wanted)
    if entry is None or entry.damage() is not None:
        return None
    return Image(form, wanted, entry.path, None, entry.size)


def _build(stage: Stage, recipe: Recipe, current: dict[Stage, str], progress: Progress) -> None:
    """Build a stage, after those missing ones that it depends on."""
    from sandbox.images import build

    def tell(line: str) -> None:
        progress(f"{stage}: {line}")

    below = {}
    for lower in build.DEPENDENCIES[stage]:
        if (entry := _intact(lower, current[lower])) is None:
            _build(lower, recipe, current, progress)
            entry = cache.read(lower, current[lower])
        if entry is None:
            raise ImageError(f"the stage {lower} vanished right after it was built", "did another program remove it?")
        below[lower] = entry
    if stage is Stage.DOCKER:
        build.docker(current[stage], recipe, below[Stage.ROOTFS], tell)
        return
    if (damaged := cache.read(stage, current[stage])) is not None:
        tell(f"building it again, because it is damaged: {damaged.damage()}")
        refuse_if_used(damaged)
    begin = time.monotonic()
    entry = build.stage(stage, current[stage], recipe, below, tell)
    tell(f"built in {time.monotonic() - begin:.0f} s, {entry.size // 2**20} MiB, digest {entry.digest[: cache.DIGITS]}")


def _intact(stage: Stage, wanted: str) -> cache.Entry | None:
    entry = cache.read(stage, wanted)
    return entry if entry is not None and entry.damage() is None else None
