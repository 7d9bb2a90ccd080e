"""Build and find the root filesystem in its forms: a directory, a Docker image, a VM's kernel, initramfs and disk.

All forms are built from one recipe, and are kept under the digest of their sources. A finished image appears under its
name in one step, so what an interrupted build leaves is never taken for an image; the next build removes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.images.forms import Image, digest, ensure, find
from sandbox.images.recipe import Form

if TYPE_CHECKING:
    from sandbox.images.housekeeping import Item, Removal, ls, prune, remove, verify

__all__ = ["Form", "Image", "Item", "Removal", "digest", "ensure", "find", "ls", "prune", "remove", "verify"]


def __getattr__(name: str) -> Any:
    # Starting a sandbox needs none of these, and they import http.client and ssl, which takes 20 ms.
    if name in ("Item", "Removal", "ls", "remove", "prune", "verify"):
        from sandbox.images import housekeeping

        return getattr(housekeeping, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
