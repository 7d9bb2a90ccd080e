"""The forms that isolation levels ask for: found cheaply, built when missing."""

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


def digest(form: Form) -> str:
    """The digest that a form has, or will have, by the recipe and the workloads as they are now.

    Raises:
        ImageError: the installation is incomplete.
    """
    return memo.digests()[Stage(form)]


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
        raise ImageError(f"the {form} image vanished right after it was built", "is another program cleaning up?")
    return found


def _find(form: Form, wanted: str) -> Image | None:
    if form is Form.DOCKER:
        from sandbox.images import dockerd  # loads what the other forms need not pay for

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
        refuse_if_used(damaged)
    begin = time.monotonic()
    entry = build.stage(stage, current[stage], recipe, below, tell)
    tell(f"built in {time.monotonic() - begin:.0f} s, {entry.size // 2**20} MiB, digest {entry.digest[: cache.DIGITS]}")


def _intact(stage: Stage, wanted: str) -> cache.Entry | None:
    entry = cache.read(stage, wanted)
    return entry if entry is not None and entry.damage() is None else None
