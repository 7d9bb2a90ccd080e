"""Copying files into a sandbox and out of it, with the tar(1) of its root filesystem.

Whatever comes out of a sandbox is hostile. It is read by a strict parser of our own (`reader`), checked entry by entry
(`checked`), unpacked into an empty directory that nobody else knows (`unpack`) and only then put in its place
(`place`): a stream that is refused half way leaves nothing.
"""

from __future__ import annotations

from sandbox.copying.checked import DEFAULT_BOUNDS, Bounds
from sandbox.copying.transfer import copy_in, copy_out, export, extract

__all__ = ["DEFAULT_BOUNDS", "Bounds", "copy_in", "copy_out", "export", "extract"]
