"""The lock that allows one builder at a time, and the check that an image is not in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sandbox.errors import BusyError, UnavailableError
from sandbox.images.cache import Entry
from sandbox.images.workspace import discard, image_errors, stale
from sandbox.state import paths
from sandbox.state.store import Store, named_lock

LOCK = "images"


@contextmanager
def exclusive(progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the images; report it if that means waiting.

    Raises:
        UnavailableError: we are not root.
        ImageError, StoreError: the state directory cannot be created.
    """
    need_root("building an image")
    Store().ensure()
    with image_errors():
        # The engines' users must be able to open images below it, but not to list it.
        paths.images_dir().mkdir(exist_ok=True, mode=0o711)
    with ExitStack() as stack:
        try:
            stack.enter_context(named_lock(LOCK, wait=False))
        except BusyError:
            progress("waiting for another command that builds images")
            stack.enter_context(named_lock(LOCK))
        yield


def need_root(what: str) -> None:
    """Raise an error if we are not root.

    Raises:
        UnavailableError: we are not root.
    """
    if os.geteuid() != 0:
        raise UnavailableError(f"{what} needs root", "run it with sudo")


def refuse_if_used(entry: Entry) -> None:
    """Raise an error if an image is in use.

    Raises:
        BusyError: it is; the message says by what.
    """
    from sandbox.images import usage

    if found := usage.users(entry):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise BusyError(f"{entry.directory.name} is in use by {', '.join(found[:3])}{more}", "stop and remove it first")


def sweep_locked(*, dry_run: bool) -> list[str]:
    """Remove what dead builds left; return a line for each directory. The caller holds the lock."""
    found = stale()
    if not dry_run:
        for path in found:
            discard(path)
    return [f"unfinished image {path.name}" for path in found]
