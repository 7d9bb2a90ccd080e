"""The times in an ext4 filesystem that nobody uses: set to what they would be had it been made at one fixed moment.

`mke2fs -d` copies the times of access and of status change from the source, where they tell when the copy was made, and
no system call sets the latter.

Source: Documentation/filesystems/ext4 of the kernel, "Super Block", "Group Descriptors" and "Index Nodes".
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_METADATA_CSUM, _64BIT = 0x400, 0x80
_DESCRIPTOR = 32
"""Bytes of a group descriptor without the feature 64bit."""


def forget_times(disk: Path) -> None:
    """Set each inode's times of access and of status change to that of its modification.

    Args:
        disk: an unmounted filesystem without the features metadata_csum and 64bit, with inodes of 256 bytes.

    Raises:
        OSError
        ValueError: it is another kind of filesystem.
    """
    with disk.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        inodes, blocks = struct.unpack_from("<II", image, _SUPERBLOCK)
        first, scale = struct.unpack_from("<II", image, _SUPERBLOCK + 20)
        (per_group,) = struct.unpack_from("<I", image, _SUPERBLOCK + 40)
        (magic,) = struct.unpack_from("<H", image, _SUPERBLOCK + 56)
        (size,) = struct.unpack_from("<H", image, _SUPERBLOCK + 88)
        incompatible, compatible = struct.unpack_from("<II", image, _SUPERBLOCK + 96)
        if magic != _MAGIC or size != 256 or incompatible & _64BIT or compatible & _METADATA_CSUM or not blocks:
            raise ValueError(f"{disk} is not the kind of filesystem that is written here")
        block = 1024 << scale
        for group in range(-(-inodes // per_group)):
            descriptor = (first + 1) * block + group * _DESCRIPTOR
            (table,) = struct.unpack_from("<I", image, descriptor + 8)
            for number in range(min(per_group, inodes - group * per_group)):
                _forget(image, table * block + number * size)


def _forget(image: mmap.mmap, inode: int) -> None:
    mode, _ = struct.unpack_from("<HH", image, inode)
    if not mode:  # not in use
        return
    (changed,) = struct.unpack_from("<I", image, inode + 16)
    struct.pack_into("<II", image, inode + 8, changed, changed)
    (extra,) = struct.unpack_from("<I", image, inode + 0x88)
    struct.pack_into("<I", image, inode + 0x84, extra)
    struct.pack_into("<I", image, inode + 0x8C, extra)
