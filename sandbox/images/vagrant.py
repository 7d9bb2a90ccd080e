"""Make a Vagrant box for libvirt from the root filesystem: `python -m sandbox.images.vagrant`, or `make box`.

The box contains a disk; its machine boots the kernel and initramfs beside the box, which are those of the level `vm`
with another init. The format is vagrant-libvirt's (https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html): a tar
archive with metadata.json, box.img (qcow2) and a Vagrantfile, which here names the private key in the archive. The key
is generated with the box, and used for no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox import images, workloads
from sandbox.errors import ImageError, SandboxError, UnavailableError
from sandbox.images import Form
from sandbox.images import vm as vmimage
from sandbox.state import paths
from sandbox.state.data import data_dir
from sandbox.state.store import Store, named_lock

BOX_DIR = "box"
"""Name of the directory of boxes, in the state directory."""
DESCRIPTION_FILE = "box.json"
BOX_FILE = "sandbox.box"
KEY_FILE = "key"
USER = "vagrant"
USER_ID = 1000
HOME = "/home/vagrant"
BOX_HOME = "usr/lib/sandbox-box"
"""Path of the scripts in the machine."""
WORKLOAD = "reactor"
PORT = 8080
DISK_SIZE = 1024 * 1024 * 1024
"""Bytes of the disk, in whole GiB, the unit of metadata.json. Blocks that are never written take no space."""
COMMAND_LINE = "console=ttyS0 quiet random.trust_cpu=on"
_INITRD_INIT = f"{vmimage.GUEST_DIR}/init"
_SCRIPTS = ("lease", "network", "server", "ssh")
_KEY_COMMENT = "sandbox's vagrant box"

BOX_VAGRANTFILE = f"""\
Vagrant.configure("2") do |config|
  config.ssh.username = "{USER}"
  config.ssh.private_key_path = File.expand_path("{KEY_FILE}", __dir__)
  config.ssh.insert_key = false
  # The root filesystem has su and no sudo; the user may become root without a password.
  config.ssh.sudo_command = "su -c '%c'"
  config.vm.guest = :linux
end
"""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Box:
    """A finished box, as the repository's Vagrantfile reads it.

    Attributes:
        name: Vagrant's name of the box, which changes with the content.
        file: path of the archive.
        kernel: path of the kernel, which libvirt's QEMU can read.
        initrd: path of the initramfs, likewise.
        command_line: command line of the kernel.
        port: port of the server in the machine.
    """

    name: str
    file: str
    kernel: str
    initrd: str
    command_line: str
    port: int


def box_dir() -> Path:
    """Return the directory with the box, its kernel and its description."""
    return paths.state_dir() / BOX_DIR


def find() -> Box | None:
    """Return the last box that was made, or None if there is none or a part of it is missing."""
    try:
        raw = json.loads((box_dir() / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        box = Box(**raw)
        complete = all(Path(name).is_file() for name in (box.file, box.kernel, box.initrd))
    except (OSError, ValueError, TypeError):
        return None
    return box if complete else None


def ensure(progress: Progress) -> Box:
    """Return the box of the current root filesystem, scripts and kernel, and make it if it is missing.

    Raises:
        UnavailableError: we are not root, or a program is not installed.
        ImageError: it could not be made; nothing of it is left.
        StoreError: the state directory cannot be created.
    """
    if os.geteuid() != 0:
        raise UnavailableError("making a box needs root", "run it with sudo")
    vm, rootfs = images.ensure(Form.VM, progress), images.ensure(Form.ROOTFS, progress)
    assert vm.path is not None  # noqa: S101 - both forms are directories
    assert rootfs.path is not None  # noqa: S101
    maker = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    name = "sandbox-" + hashlib.sha256(f"{vm.digest} {maker} {shlex.join(command())}".encode()).hexdigest()[:12]
    Store().ensure()
    with named_lock(BOX_DIR):
        known = find()
        if known is not None and known.name == name:
            return known
        try:
            return _make(name, rootfs.path, vm.path, progress)
        except OSError as error:
            raise ImageError(f"the box could not be made: {error}") from error


def command() -> tuple[str, ...]:
    """Return the server's command in the machine. tini gets -s, as it is not process 1."""
    return ("/usr/bin/tini", "-s", "--", *workloads.argv(WORKLOAD, host="0.0.0.0", port=PORT))  # noqa: S104


def _make(name: str, rootfs: Path, vm: Path, progress: Progress) -> Box:
    """Write everything to a temporary directory, and rename that at the end."""
    home = box_dir()
    home.mkdir(mode=0o755, exist_ok=True)
    for left in home.iterdir():  # the previous box, and what an interrupted run left
        if left.is_dir():
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=home, prefix=".tmp-") as scratch:
        work, result = Path(scratch) / "work", Path(scratch) / "result"
        work.mkdir()
        result.mkdir(mode=0o755)
        shutil.copyfile(vm / vmimage.KERNEL_FILE, result / vmimage.KERNEL_FILE)
        (result / vmimage.INITRD_FILE).write_bytes((vm / vmimage.INITRD_FILE).read_bytes() + init_archive())
        progress("making the box's key and disk")
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", _KEY_COMMENT, "-f", str(work / KEY_FILE)])
        staging = work / "root"
        vmimage.stage_disk(rootfs, staging)
        prepare(staging, (work / f"{KEY_FILE}.pub").read_text(encoding="ascii"))
        make_disk(staging, work / "disk.raw")
        _run(["qemu-img", "convert", "-O", "qcow2", str(work / "disk.raw"), str(work / "box.img")])
        progress("packing the box")
        pack(work, result / BOX_FILE)
        result.rename(home / name)
    ready = home / name
    box = Box(
        name=name,
        file=str(ready / BOX_FILE),
        kernel=str(ready / vmimage.KERNEL_FILE),
        initrd=str(ready / vmimage.INITRD_FILE),
        command_line=COMMAND_LINE,
        port=PORT,
    )
    description = home / f".{DESCRIPTION_FILE}"
    description.write_text(json.dumps(asdict(box), indent=2) + "\n", encoding="utf-8")
    description.chmod(0o644)
    description.rename(home / DESCRIPTION_FILE)
    return box


def init_archive() -> bytes:
    """Make the archive to append to the initramfs of `vm`. Of two files with one name, the kernel uses the later."""
    init = (data_dir("vm") / "box" / "init").read_bytes()
    return b"".join(vmimage.cpio([vmimage.file_entry(_INITRD_INIT, init, 0o755)]))


def prepare(root: Path, public_key: str) -> None:
    """Prepare a copy of the root filesystem for Vagrant: a user with a key, init, DHCP, SSH.

    Args:
        root: the copy, owned by root.
        public_key: the line for authorized_keys.

    Raises:
        ImageError: the root filesystem already has a user of this name.
        OSError: writing failed.
    """
    source = data_dir("vm") / "box"
    _install(source / "inittab", root / "etc/inittab", 0o644)
    _install(source / "shutdown", root / "usr/sbin/shutdown", 0o755)
    for name in _SCRIPTS:
        _install(source / name, root / BOX_HOME / name, 0o755)
    (root / BOX_HOME / "command").write_text(f"set -- {shlex.join(command())}\n", encoding="utf-8")
    (root / "etc/dropbear").mkdir(mode=0o700, exist_ok=True)  # for the host keys, which the machine generates
    _add_user(root, public_key)
    # Debian's su asks everyone but root for a password; its configuration suggests "trust" (pam_wheel(8)).
    configuration = root / "etc/pam.d/su"
    text = configuration.read_text(encoding="utf-8")
    configuration.write_text(f"auth sufficient pam_wheel.so trust use_uid group={USER}\n{text}", encoding="utf-8")


def _add_user(root: Path, public_key: str) -> None:
    lines = {
        "passwd": f"{USER}:x:{USER_ID}:{USER_ID}::{HOME}:/bin/bash",
        "group": f"{USER}:x:{USER_ID}:{USER}",
        "shadow": f"{USER}:*:19000::::::",
        "gshadow": f"{USER}:!::{USER}",
    }
    for name, line in lines.items():
        path = root / "etc" / name
        text = path.read_text(encoding="utf-8")
        fields = [entry.split(":") for entry in text.splitlines()]
        taken = name in ("passwd", "group") and str(USER_ID) in [entry[2] for entry in fields]
        if taken or USER in [entry[0] for entry in fields]:
            raise ImageError(f"the root filesystem's /etc/{name} already has a user {USER} or an id {USER_ID}")
        path.write_text(f"{text}{line}\n", encoding="utf-8")
    home = root / HOME.lstrip("/")
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/authorized_keys").write_text(public_key, encoding="ascii")
    for path, mode in ((home, 0o755), (home / ".ssh", 0o700), (home / ".ssh/authorized_keys", 0o600)):
        path.chmod(mode)
        os.chown(path, USER_ID, USER_ID)


def _install(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(source.read_bytes())
    target.chmod(mode)


def make_disk(source: Path, disk: Path) -> None:
    """Make an ext4 filesystem from a directory, with a journal, so that it survives a machine that is killed.

    Raises:
        ImageError: mke2fs failed, or the directory does not fit.
    """
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    _run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-L", "sandbox", "-m", "0", "-O", "^metadata_csum",
            "-E", "root_owner=0:0", "-d", str(source), str(disk),
        ]
    )  # fmt: skip


def pack(work: Path, target: Path) -> None:
    """Pack box.img and the key into the box's archive, which only its owner can read, because of the key."""
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_SIZE // 2**30}
    (work / "metadata.json").write_text(json.dumps(metadata) + "\n", encoding="utf-8")
    (work / "Vagrantfile").write_text(BOX_VAGRANTFILE, encoding="utf-8")
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name in ("metadata.json", "Vagrantfile", KEY_FILE, "box.img"):
            archive.add(work / name, arcname=name)


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        packages = "apt-get install openssh-client e2fsprogs qemu-utils"
        raise UnavailableError(f"{words[0]} is not installed", packages) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ImageError(f"{words[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}")


def main() -> int:
    """Make the box, with progress on standard error, and print its path."""
    try:
        box = ensure(lambda line: print(line, file=sys.stderr))
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return error.exit_code
    # Only the caller of sudo may use the box, as it contains the key.
    if owner := os.environ.get("SUDO_UID"):
        os.chown(box.file, int(owner), -1)
    print(box.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
