"""The VM's kernel, initramfs and disk: their formats, and the root filesystem, which is not changed."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ImageError
from sandbox.images import vm
from sandbox.images.vm import Entry
from sandbox.state.data import data_dir

ELF = b"\x7fELF" + bytes(range(256)) * 9
MAGIC = b"\x02\x21\x4c\x18"


def lz4_literals(data: bytes) -> bytes:
    """Return one LZ4 block of literals."""
    length = len(data)
    if length < 15:
        return bytes([length << 4]) + data
    rest = length - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def legacy(*blocks: bytes, size: int) -> bytes:
    return MAGIC + b"".join(struct.pack("<I", len(block)) + block for block in blocks) + struct.pack("<I", size)


def bzimage(payload: bytes) -> bytes:
    """Return a boot sector with a setup header, four sectors of setup, and a payload 64 bytes after them."""
    image = bytearray(5 * 512 + 64)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + payload


needs_lz4 = pytest.mark.skipif(shutil.which("lz4") is None, reason="lz4 is not on PATH")


@needs_lz4
def test_a_packed_kernel_is_unpacked() -> None:
    begin, end = ELF[:1000], ELF[1000:]
    packed = legacy(lz4_literals(begin), lz4_literals(end), size=len(ELF))
    assert vm.unpack_kernel(bzimage(packed)) == ELF


@needs_lz4
@pytest.mark.parametrize("block", [b"\x10a\x00\x00", b"\x10a\x09\x00", b"\x1fa\x01\x00\xff", b"\x1fa\x01"])
def test_damaged_lz4_is_an_image_error(block: bytes) -> None:
    with pytest.raises(ImageError, match="lz4 failed"):
        vm.unpack_kernel(bzimage(legacy(block, size=1)))


def test_without_its_program_a_kernel_is_an_image_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="lz4 is not installed") as caught:
        vm.unpack_kernel(bzimage(legacy(lz4_literals(ELF), size=len(ELF))))
    assert caught.value.hint == "apt-get install erofs-utils lz4"


def test_an_unknown_kernel_is_left_as_it_is() -> None:
    for image in (b"MZ" + bytes(600), b"", bzimage(b"\x28\xb5\x2f\xfd and more, as zstd has it")):
        assert vm.unpack_kernel(image) == image


@needs_lz4
def test_a_kernel_of_the_wrong_size_or_kind_is_refused() -> None:
    for payload in (legacy(lz4_literals(ELF), size=1), legacy(lz4_literals(b"no ELF"), size=6)):
        with pytest.raises(ImageError, match="is not a kernel"):
            vm.unpack_kernel(bzimage(payload))


def read_cpio(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Read the format independently, up to the trailer."""
    found: list[tuple[str, int, bytes, tuple[int, int]]] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        begin = -(-(at + 110 + name_size) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert not data[begin:]
            return found
        found.append((name[:-1].decode(), fields[1], data[begin : begin + size], (fields[9], fields[10])))
        at = -(-(begin + size) // 4) * 4


@given(st.lists(st.tuples(st.text("abc/.", min_size=1, max_size=9), st.binary(max_size=9)), max_size=5))
def test_cpio_comes_back(files: list[tuple[str, bytes]]) -> None:
    entries = [vm.file_entry(name, content, 0o640) for name, content in files]
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    found = read_cpio(b"".join(vm.cpio(entries)))
    assert found == [(entry.name, entry.mode, entry.content, entry.device) for entry in entries]


def test_the_configuration_is_for_root_alone() -> None:
    found = read_cpio(vm.config_archive({"settings": b"a=1\n", "host_key": b"k"}))
    assert [(name, oct(mode)) for name, mode, _, _ in found] == [
        ("guest/etc", "0o40700"),
        ("guest/etc/settings", "0o100600"),
        ("guest/etc/host_key", "0o100600"),
    ]


def test_an_application_is_readable_and_belongs_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir(mode=0o700)
    (tmp_path / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "sub" / "run").chmod(0o4700)
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "link").symlink_to("sub/run")
    (tmp_path / "\udcff").write_bytes(b"")
    found = read_cpio(b"".join(vm.app_archive(tmp_path)).replace(b"\xff", b"?"))
    assert [(name, oct(mode), content) for name, mode, content, _ in found] == [
        ("guest/app", "0o40755", b""),
        ("guest/app/link", "0o120777", b"sub/run"),
        ("guest/app/secret", "0o100644", b"x"),
        ("guest/app/sub", "0o40755", b""),
        ("guest/app/sub/run", "0o100755", b"#!/bin/sh\n"),
        ("guest/app/?", "0o100644", b""),
    ]


def test_an_application_has_no_pipes_nor_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is not a file, directory or symbolic link"):
        list(vm.app_archive(tmp_path))


def kernel_tree(root: Path) -> Path:
    names = vm.module_names((data_dir("vm") / "initramfs" / "modules").read_text())
    libraries = [f"usr/lib/x86_64-linux-gnu/{name}" for name in vm.DROPBEAR_LIBRARIES]
    modules = [f"lib/modules/6.1/kernel/drivers/{name}.ko" for name in names]
    for name in ("bin/busybox", "usr/sbin/dropbear", "boot/vmlinuz-6.1", *modules, *libraries):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_the_initramfs_has_every_driver_in_order(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "lib/x86_64-linux-gnu").mkdir(parents=True)
    (rootfs / "lib/x86_64-linux-gnu/libz.so.1").write_bytes(b"the root filesystem's own")
    entries = {entry.name: entry for entry in vm.initramfs(rootfs, kernel_tree(tmp_path / "kernel"))}
    names = entries["modules"].content.decode().split()
    assert names.index("virtio") > names.index("virtio_ring")
    assert names.index("virtio_net") > names.index("net_failover") > names.index("failover")
    assert all(entries[f"lib/modules/{name}.ko"].content for name in names)
    assert entries["init"].mode == stat.S_IFREG | 0o755
    assert entries["dev/console"].device == (5, 1)
    # A library that the root filesystem has is not added again.
    assert "guest/lib/libz.so.1" not in entries
    assert "guest/lib/libtomcrypt.so.1" in entries


@pytest.mark.parametrize("name", ["bin/busybox", "usr/sbin/dropbear", "lib/modules/6.1/kernel/drivers/virtio_net.ko"])
def test_a_tree_without_a_part_is_an_image_error(tmp_path: Path, name: str) -> None:
    tree = kernel_tree(tmp_path / "kernel")
    (tree / name).unlink()
    with pytest.raises(ImageError, match=Path(name).name):
        list(vm.initramfs(tmp_path, tree))


def rootfs_tree(root: Path) -> Path:
    for name in ("usr/bin/tini", "usr/bin/setpriv", "etc/passwd"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 2000)
    (root / "usr/lib").mkdir()
    (root / "root").mkdir(mode=0o700)
    (root / "bin").symlink_to("usr/bin")
    return root


needs_erofs = pytest.mark.skipif(
    shutil.which("mkfs.erofs") is None or shutil.which("fsck.erofs") is None, reason="erofs-utils is not on PATH"
)


@needs_erofs
def test_the_disk_is_the_root_filesystem_and_three_names(tmp_path: Path) -> None:
    rootfs = rootfs_tree(tmp_path / "rootfs")
    staging, disk, back = tmp_path / "staging", tmp_path / "disk.raw", tmp_path / "back"
    (rootfs / "etc/passwd").chmod(0o4751)
    os.utime(rootfs / "etc/passwd", (1_000_000_000, 1_100_000_000))
    vm.stage_disk(rootfs, staging)
    added = {path.relative_to(staging) for path in staging.rglob("*")} - {
        p.relative_to(rootfs) for p in rootfs.rglob("*")
    }
    assert {str(path) for path in added} == {"app", "usr/lib/sandbox-vm", "root/.ssh"}
    vm.make_filesystem(staging, disk)
    subprocess.run(["fsck.erofs", f"--extract={back}", "--preserve", disk], capture_output=True, check=True)
    assert (back / "etc/passwd").read_bytes() == b"etc/passwd" * 2000
    looked = (back / "etc/passwd").stat()
    assert (looked.st_uid, looked.st_mtime) == (os.getuid(), 1_100_000_000)
    # fsck.erofs extracts only the rwx bits, so the inode is read (Documentation/filesystems/erofs.rst).
    said = subprocess.run(["dump.erofs", "--path=/etc/passwd", disk], capture_output=True, text=True, check=True).stdout
    (mode,) = struct.unpack_from("<H", disk.read_bytes(), 32 * int(said.partition("NID: ")[2].split()[0]) + 4)
    assert oct(mode) == "0o104751"
    assert os.readlink(back / "bin") == "usr/bin"
    assert (back / "root").stat().st_mode == stat.S_IFDIR | 0o700
    assert {path.relative_to(back) for path in back.rglob("*")} == {p.relative_to(staging) for p in staging.rglob("*")}


@needs_erofs
def test_the_same_tree_gives_the_same_disk(tmp_path: Path) -> None:
    """The disk does not depend on access and change times, or on the order of a directory's entries."""
    rootfs = rootfs_tree(tmp_path / "rootfs")
    vm.stage_disk(rootfs, tmp_path / "one")
    vm.stage_disk(rootfs, tmp_path / "two")
    for path in sorted((tmp_path / "two").rglob("*"), reverse=True):
        before = path.parent.stat().st_mtime
        if path.is_file() and not path.is_symlink():
            shutil.copy2(path, path.with_name(".other"))
            path.with_name(".other").rename(path)
        os.utime(path, (1_000_000_000, path.lstat().st_mtime), follow_symlinks=False)
        os.utime(path.parent, (1_000_000_000, before))
    vm.make_filesystem(tmp_path / "one", tmp_path / "one.img")
    vm.make_filesystem(tmp_path / "two", tmp_path / "two.img")
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()


def test_what_the_root_filesystem_has_is_not_replaced(tmp_path: Path) -> None:
    rootfs = rootfs_tree(tmp_path / "rootfs")
    (rootfs / vm.GUEST_HOME).mkdir()
    with pytest.raises(ImageError, match="already has"):
        vm.stage_disk(rootfs, tmp_path / "staging")


def test_a_root_filesystem_without_tini_is_refused(tmp_path: Path) -> None:
    rootfs = rootfs_tree(tmp_path / "rootfs")
    (rootfs / "usr/bin/tini").unlink()
    with pytest.raises(ImageError, match="tini"):
        vm.stage_disk(rootfs, tmp_path / "staging")


@needs_erofs
def test_a_failing_tool_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"mkfs\.erofs failed"):
        vm.make_filesystem(tmp_path / "nothing", tmp_path / "disk")
