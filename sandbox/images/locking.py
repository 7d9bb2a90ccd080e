"""One builder at a time, and no removal of what is in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sandbox.errors import BusyError, UnavailableError
from sandbox.images.cache import Entry
from sandbox.images.workspace import discard, explained, stale
from sandbox.state import paths
from sandbox.state.store import Store, named_lock

LOCK = "images"


@contextmanager
def exclusive(progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the images, and say so when that means waiting.

    Raises:
        UnavailableError: not root.
        ImageError, StoreError: the state directory cannot be made.
    """
    need_root("building an image")
    Store().ensure()
    with explained():
        # Engines' own users read images below it; nobody lists it.
        paths.images_dir().mkdir(exist_ok=True, mode=0o711)
    with ExitStack() as stack:
        try:
            stack.enter_context(named_lock(LOCK, wait=False))
        except BusyError:
            progress("waiting for another command that builds images")
            stack.enter_context(named_lock(LOCK))
        yield


def need_root(what: str) -> None:
    """Refuse what only root can do.

    Raises:
        UnavailableError: we are not root.
    """
    if os.geteuid() != 0:
        raise UnavailableError(f"{what} needs root", "run it with sudo")


def refuse_if_used(entry: Entry) -> None:
    """Keep a caller from removing what somebody works with.

    Raises:
        BusyError: names who does.
    """
    from sandbox.images import usage

    if found := usage.users(entry):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise BusyError(f"{entry.directory.name} is in use by {', '.join(found[:3])}{more}", "stop and remove it first")


def sweep_locked(*, dry_run: bool) -> list[str]:
    """Remove what dead builds left; the caller holds the lock. Returns a line per thing."""
    found = stale()
    if not dry_run:
        for path in found:
            discard(path)
    return [f"unfinished image {path.name}" for path in found]
