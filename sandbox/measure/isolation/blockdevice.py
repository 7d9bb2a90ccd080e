"""A temporary block device of the host with random content, which sandboxes try to read: loop(4).

The host's real disks are not touched: a sandbox that cannot read this device cannot read them either.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

# linux/loop.h
_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A  # Linux 5.8
_READ_ONLY = 1
_AUTOCLEAR = 4  # the kernel removes it at the last close, also if we are killed
_FLAGS_AT = 52  # lo_flags in struct loop_info64, which has 232 bytes
_ATTEMPTS = 8
SIZE = 4096
"""Bytes of the device: one page, all random."""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A loop device that exists until `close`.

    Attributes:
        path: path of its node.
        major, minor: device number.
        digest: SHA-256 of its content.
    """

    path: Path
    major: int
    minor: int
    digest: str
    descriptor: int

    def close(self) -> None:
        """Close the device. This removes it, unless a sandbox has it open at this moment."""
        os.close(self.descriptor)


def make() -> BlockDevice:
    """Set up a read-only loop device over a page of random bytes.

    Raises:
        OSError: this host has no loop devices, or we may not use them.
    """
    content = os.urandom(SIZE)
    with tempfile.TemporaryFile() as backing:
        backing.write(content)
        backing.flush()
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                path = Path(f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}")
                descriptor = _configure(path, backing.fileno())
                if descriptor is not None:
                    number = os.fstat(descriptor).st_rdev
                    digest = hashlib.sha256(content).hexdigest()
                    return BlockDevice(path, os.major(number), os.minor(number), digest, descriptor)
        finally:
            os.close(control)
    raise OSError(errno.EBUSY, "another process took each free loop device first")


def _configure(path: Path, backing: int) -> int | None:
    """Bind the device to a file. Returns None if another process was faster."""
    info = bytearray(232)
    struct.pack_into("<I", info, _FLAGS_AT, _READ_ONLY | _AUTOCLEAR)
    config = struct.pack("<II", backing, 0) + bytes(info) + bytes(64)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _CONFIGURE, config)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EBUSY:
            return None
        raise
    return descriptor
