"""Copy files into a sandbox and out of it, with the tar(1) of its root filesystem.

Data from a sandbox is untrusted. It is read by a strict parser (`reader`), checked entry by entry (`validation`),
unpacked into a new directory that only root can enter (`unpack`), and only then moved to its destination (`place`). If
the stream is refused half way, nothing of it is left.
"""

from __future__ import annotations

from sandbox.copying.transfer import copy_in, copy_out, export, extract
from sandbox.copying.validation import DEFAULT_BOUNDS, Bounds

__all__ = ["DEFAULT_BOUNDS", "Bounds", "copy_in", "copy_out", "export", "extract"]
