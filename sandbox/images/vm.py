"""Make the kernel, initramfs and disk of a VM from the root filesystem and Debian's kernel.

No loop device is needed: the initramfs is a cpio archive that is written here, and the disk is an EROFS that
mkfs.erofs(1) makes from a directory. Both are shared by all sandboxes, and read-only.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.state.data import data_dir

KERNEL_FILE = "vmlinuz"
INITRD_FILE = "initrd"
DISK_FILE = "disk.raw"

GUEST_HOME = "usr/lib/sandbox-vm"
"""Directory of the guest's programs beside the root filesystem. The scripts in vm/ contain this path."""
GUEST_DIR = "guest"
"""The same directory in the initramfs."""
APP = "app"
"""Name of the directory of an application's files: below GUEST_DIR in the initramfs, and /app in the guest."""

DROPBEAR_LIBRARIES = ("libtomcrypt.so.1", "libtommath.so.1", "libcrypt.so.1", "libz.so.1")
"""Libraries that Debian's dropbear is linked with, beside the C library, which every root filesystem has."""

_LIBRARY_DIRS = ("lib/*-linux-gnu", "usr/lib/*-linux-gnu")
_MTIME = 1704067200
_DISK_UUID = "5b5b5b5b-0000-4000-8000-5a4d0a5e0001"

Progress = Callable[[str], None]


def build_vm(rootfs: Path, kernel_tree: Path, target: Path, progress: Progress) -> None:
    """Write the kernel, the initramfs and the disk into a directory.

    Args:
        rootfs: directory of the root filesystem, which is not changed.
        kernel_tree: packages extracted side by side: a kernel with its modules, busybox-static, dropbear-bin.
        target: an existing directory.
        progress: called with each step.

    Raises:
        ImageError: a tree lacks something, a program failed, or the disk is full.
    """
    try:
        progress("unpacking the VM's kernel")
        (target / KERNEL_FILE).write_bytes(unpack_kernel(_only(kernel_tree, "boot/vmlinuz-*").read_bytes()))
        progress("writing the VM's initramfs")
        with (target / INITRD_FILE).open("wb") as file:
            for part in cpio(initramfs(rootfs, kernel_tree)):
                file.write(part)
        progress("writing the VM's disk")
        with tempfile.TemporaryDirectory(dir=target, prefix=".disk-") as scratch:
            staging = Path(scratch) / "root"
            stage_disk(rootfs, staging)
            make_filesystem(staging, target / DISK_FILE)
    except OSError as error:
        raise ImageError(f"the VM's image could not be written: {error}") from error


# --- the kernel --------------------------------------------------------------------------------------------------

_SETUP_SECTS, _HEADER_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
"""Offsets in a bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"."""
_LZ4_LEGACY = b"\x02\x21\x4c\x18"


def unpack_kernel(image: bytes) -> bytes:
    """Return the uncompressed kernel in a bzImage, an ELF file that is started by its PVH note.

    An emulated kernel takes 0.2 to 0.8 s to unpack itself at every boot; here this is done once. An image that is not a
    bzImage, or not compressed by LZ4 as Debian's are, is returned unchanged: it boots too, only more slowly.

    Raises:
        ImageError: the image is damaged, or lz4(1) is not installed.
    """
    if image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        return image
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    begin = (image[_SETUP_SECTS] + 1) * 512 + offset
    payload = image[begin : begin + length]
    if not payload.startswith(_LZ4_LEGACY):
        return image
    # The payload ends with its unpacked size (scripts/Makefile.lib, size_append).
    kernel = _run(["lz4", "-d", "-c"], payload[:-4])
    if len(kernel) != int.from_bytes(payload[-4:], "little") or not kernel.startswith(b"\x7fELF"):
        raise ImageError("the unpacked file is not a kernel", "sandbox images rm, then build again")
    return kernel


# --- the initramfs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive.

    Attributes:
        name: path without a leading '/'.
        mode: mode with the bits of the file type.
        content: bytes of a file.
        device: major and minor number of a device.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def file_entry(name: str, content: bytes, permissions: int) -> Entry:
    """Make the entry of a regular file."""
    return Entry(name, stat.S_IFREG | permissions, content)


def directory_entry(name: str, permissions: int = 0o755) -> Entry:
    """Make the entry of a directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def initramfs(rootfs: Path, kernel_tree: Path) -> Iterator[Entry]:
    """Yield the entries of the initramfs: busybox, the drivers, an SSH server, and the scripts of vm/.

    Each machine adds an archive with its configuration; see `config_archive`.

    Raises:
        ImageError: a file is missing.
    """
    source = data_dir("vm")
    busybox = _find(kernel_tree, "bin/busybox").read_bytes()
    for directory in ("bin", "dev", "lib", "lib/modules", "sysroot", GUEST_DIR, f"{GUEST_DIR}/lib"):
        yield directory_entry(directory)
    # The kernel opens it for the init's three descriptors before anything is mounted.
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield file_entry("bin/busybox", busybox, 0o755)
    names = module_names((source / "initramfs" / "modules").read_text(encoding="utf-8"))
    for name in names:
        module = _only(kernel_tree, f"lib/modules/*/kernel/**/{name}.ko")
        yield file_entry(f"lib/modules/{name}.ko", module.read_bytes(), 0o644)
    yield file_entry("modules", "".join(f"{name}\n" for name in names).encode(), 0o644)
    yield file_entry("init", (source / "initramfs" / "init").read_bytes(), 0o755)
    for name in ("init", "enter", "common"):
        yield file_entry(f"{GUEST_DIR}/{name}", (source / "guest" / name).read_bytes(), 0o755)
    yield file_entry(f"{GUEST_DIR}/dropbear", _find(kernel_tree, "usr/sbin/dropbear").read_bytes(), 0o755)
    yield file_entry(f"{GUEST_DIR}/busybox", busybox, 0o755)
    for name in DROPBEAR_LIBRARIES:
        if _library(rootfs, name) is None:
            found = _library(kernel_tree, name)
            if found is None:
                raise ImageError(f"neither the root filesystem nor the kernel's packages have {name}")
            yield file_entry(f"{GUEST_DIR}/lib/{name}", found.read_bytes(), 0o644)


def _library(tree: Path, name: str) -> Path | None:
    return next((path for pattern in _LIBRARY_DIRS for path in tree.glob(f"{pattern}/{name}")), None)


def config_archive(files: Mapping[str, bytes]) -> bytes:
    """Make the archive with a machine's configuration, to append to the initramfs; the kernel unpacks both.

    Args:
        files: contents by name; in the guest, only root can read them.
    """
    entries = [file_entry(f"{GUEST_DIR}/etc/{name}", content, 0o600) for name, content in files.items()]
    return b"".join(cpio([directory_entry(f"{GUEST_DIR}/etc", 0o700), *entries]))


def app_archive(source: Path) -> Iterator[bytes]:
    """Make the archive with an application's files, likewise. In the guest, root owns them and all can read them.

    Raises:
        OSError: a file cannot be read.
        ImageError: an entry is not a file, directory or symbolic link.
    """
    return cpio(_copied(source, f"{GUEST_DIR}/{APP}"))


def _copied(source: Path, name: str) -> Iterator[Entry]:
    mode = source.lstat().st_mode
    if stat.S_ISLNK(mode):
        yield Entry(name, stat.S_IFLNK | 0o777, os.fsencode(os.readlink(source)))
    elif stat.S_ISREG(mode):
        yield file_entry(name, source.read_bytes(), 0o755 if mode & 0o111 else 0o644)
    elif stat.S_ISDIR(mode):
        yield directory_entry(name)
        for path in sorted(source.iterdir()):
            yield from _copied(path, f"{name}/{path.name}")
    else:
        raise ImageError(f"{source} is not a file, directory or symbolic link", "remove it from the application")


def module_names(text: str) -> list[str]:
    """Return the lines of vm/initramfs/modules without comments."""
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]


def cpio(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Make an archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).

    It is not compressed, as an emulated guest reads 5 MB faster than it unpacks 2 MB.
    """
    for number, entry in enumerate(chain(entries, (Entry("TRAILER!!!", 0),)), start=1):
        path = os.fsencode(entry.name) + b"\0"
        major, minor = entry.device
        fields = (number, entry.mode, 0, 0, 1, _MTIME, len(entry.content), 0, 0, major, minor, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield head + bytes(-len(head) % 4) + entry.content + bytes(-len(entry.content) % 4)


# --- the disk ----------------------------------------------------------------------------------------------------


def stage_disk(rootfs: Path, staging: Path) -> None:
    """Copy the root filesystem, and add the mount points of the guest's programs; nothing is replaced.

    Raises:
        ImageError: a file is missing, or GUEST_HOME exists already.
    """
    _run(["cp", "--archive", "--reflink=auto", "--", str(rootfs), str(staging)])
    home = staging / GUEST_HOME
    if os.path.lexists(home):
        raise ImageError(f"the root filesystem already has a /{GUEST_HOME}")
    home.mkdir(mode=0o755)
    app = staging / APP
    app.mkdir(mode=0o755, exist_ok=True)
    for needed in ("usr/bin/tini", "usr/bin/setpriv"):
        _find(staging, needed)
    # dropbear looks for the keys that may log in below /root/.ssh.
    (staging / "root" / ".ssh").symlink_to(f"/{GUEST_HOME}/etc")
    for path in (home, home.parent, app, staging / "root", staging / "root" / ".ssh", staging):
        os.utime(path, (_MTIME, _MTIME), follow_symlinks=False)


def make_filesystem(source: Path, disk: Path) -> None:
    """Make an EROFS from a directory, not compressed, as unpacking takes an emulated guest longer than reading.

    The UUID and the times are fixed, so that the same tree gives the same bytes.

    Raises:
        ImageError: mkfs.erofs failed.
    """
    fixed_time = {**os.environ, "SOURCE_DATE_EPOCH": str(_MTIME)}
    _run(["mkfs.erofs", "--quiet", "-U", _DISK_UUID, str(disk), str(source)], environment=fixed_time)


def _find(tree: Path, name: str) -> Path:
    path = tree / name
    if not path.is_file():
        raise ImageError(f"{tree} has no /{name}")
    return path


def _only(tree: Path, pattern: str) -> Path:
    found = sorted(tree.glob(pattern))
    if len(found) != 1:
        raise ImageError(f"{tree} has {len(found)} files {pattern} instead of one")
    return found[0]


def _run(command: list[str], given: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False, env=environment)
    except FileNotFoundError:
        raise ImageError(f"{command[0]} is not installed", "apt-get install erofs-utils lz4") from None
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ImageError(f"{command[0]} failed: {words[-1] if words else f'exit code {done.returncode}'}")
    return done.stdout
