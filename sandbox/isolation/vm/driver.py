"""Level `vm`: a virtual machine managed by libvirt, with its own kernel.

The root filesystem is that of the other levels, on a read-only disk that all machines share. No overlay is needed,
because the writable directories of a sandbox are in memory at every level. The configuration and keys of a machine, a
few kilobytes, are appended to its initramfs, which is faster than a second disk. The domain is transient: when QEMU
ends, for whatever reason, libvirt removes it.

The machine is started, signalled and stopped over its serial console, which needs neither its network nor its SSH
server. Commands whose output is needed (exec, limits, stats) are run over SSH.
"""

from __future__ import annotations

import ipaddress
import math
import os
import platform
import secrets
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sandbox import host, images
from sandbox.errors import EngineError, ImageError, SpecError, UnavailableError
from sandbox.failpoints import Failpoint, reached
from sandbox.images.vm import DISK_FILE, INITRD_FILE, KERNEL_FILE, app_archive, config_archive
from sandbox.isolation.base import INIT, SHM_BYTES, Features, Isolation, Progress, environment, writable
from sandbox.isolation.vm import config, domain, output, xml
from sandbox.isolation.vm.config import Configuration
from sandbox.isolation.vm.domain import Hypervisor
from sandbox.isolation.vm.sandbox import CLIENT_KEY, CONSOLE, CONSOLE_LOG, INITRD, Handle, VmSandbox
from sandbox.isolation.vm.xml import DomainPlan
from sandbox.kernel import cgroup
from sandbox.network import lab
from sandbox.spec import MIB, SANDBOX_UID, SandboxSpec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record

MIN_MEMORY = 96 * MIB
"""In bytes. The kernel, its page tables and the initramfs take 70 MiB while it boots."""
MACHINE = "x86_64"


class VmIsolation(Isolation):
    """The driver of the level `vm`: libvirt with KVM if that works, else with QEMU's software emulation."""

    name = "vm"
    features = Features(
        shares_kernel=False,
        machine=True,
        warm_by_pause=True,
        requires=(
            "net.tun",
            "program.qemu",
            "program.mkfs.erofs",
            "program.lz4",
            "libvirt.daemon",
            "libvirt.kvm-group",
            "python.libvirt",
            "python.paramiko",
        ),
    )

    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self._owner: tuple[int, int] | None = None

    def check(self, spec: SandboxSpec) -> None:
        if spec.mounts:
            raise SpecError(
                f"-v {spec.mounts[0].source}: a virtual machine shares no files with the host",
                "copy them in with `sandbox cp`, or put them into the application's directory",
            )
        if spec.memory % MIB:
            below = spec.memory // MIB
            raise SpecError(
                f"--memory {spec.memory}: a virtual machine's memory is a whole number of MiB",
                f"{below}m or {below + 1}m",
            )
        if spec.memory < MIN_MEMORY:
            raise SpecError(
                f"--memory {spec.memory // MIB}m is too little for a virtual machine, whose kernel needs memory too",
                f"at least {MIN_MEMORY // MIB}m",
            )
        if spec.cpus != math.ceil(spec.cpus) and not cgroup.hierarchy().has("cpu"):
            raise SpecError(
                f"--cpus {spec.cpus:g}: without the cgroup controller `cpu` a virtual machine gets whole processors",
                f"--cpus {math.ceil(spec.cpus)}",
            )

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        if platform.machine() != MACHINE:
            raise UnavailableError(f"the level vm supports {MACHINE} hosts only, and this one is {platform.machine()}")
        self.hypervisor.connect()
        self._owner = self.hypervisor.qemu_owner()
        if self._owner[0] == 0:
            raise UnavailableError("libvirt runs QEMU as root", 'user = "libvirt-qemu" in /etc/libvirt/qemu.conf')
        images.ensure(images.Form.VM, progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> VmSandbox:
        image = images.find(images.Form.VM)
        if image is None or image.path is None:
            raise ImageError("the VM's image has not been built", "sandbox images build")
        owner = self._owner or self.hypervisor.qemu_owner()
        keys = config.make_keys()
        record.accelerator = "kvm" if host.kvm_works() else "tcg"
        handle = Handle(secrets.token_hex(8), keys.host_public)
        record.keep_handle(handle)
        sandbox = VmSandbox(record, self.hypervisor)
        # Before the first file, and by name: libvirt may have created the domain even if no answer arrives.
        undo.callback(sandbox.remove)
        try:
            _write_files(spec, record, image.path, handle.nonce, keys, owner)
            reached(Failpoint.FILES_WRITTEN)
            sandbox.handle = replace(handle, domain=xml.domain_name(record.id))
            record.keep_handle(sandbox.handle)
            plan = _plan(spec, record, image.path, record.accelerator, owner)
            self.hypervisor.create_paused(xml.domain_xml(plan))
        except OSError as error:
            raise EngineError(f"the machine's files could not be written: {error}") from error
        reached(Failpoint.DOMAIN_DEFINED)
        pid = domain.qemu_pid(record.id)
        record.process = None if pid is None else ProcessId.of(pid)
        if record.process is None:
            raise EngineError("QEMU ended at once", f"see {domain.LOG_DIR}/{xml.domain_name(record.id)}.log")
        sandbox.confirm_confined()
        sandbox.listen()
        return sandbox

    def adopt(self, record: Record) -> VmSandbox:
        return VmSandbox(record, self.hypervisor)

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = []
        for ident in self.hypervisor.idents():
            if ident not in known:
                if not dry_run:
                    self.hypervisor.destroy(ident)
                found.append(f"virtual machine {xml.domain_name(ident)}")
        for path in domain.log_files():
            if path.name.removeprefix(xml.NAME_PREFIX).partition(".")[0] not in known:
                if not dry_run:
                    path.unlink(missing_ok=True)
                found.append(f"file {path}")
        return found

    def remove_shared(self) -> list[str]:
        """Do nothing: machines share only the image, which `sandbox images rm` removes."""
        return []


def _write_files(
    spec: SandboxSpec, record: Record, image: Path, nonce: str, keys: config.Keys, owner: tuple[int, int]
) -> None:
    configuration = Configuration(
        nonce=nonce,
        hostname=spec.name,
        address=record.address,
        netmask=str(ipaddress.ip_network(lab.SUBNET).netmask),
        pids=spec.pids_limit,
        uid=SANDBOX_UID,
        environment=environment(spec),
        # In a guest, process 1 is the guest's own init, so `-s` makes tini adopt the workload's orphans.
        init=(INIT[0], "-s", *INIT[1:]),
        argv=spec.argv,
        directory=spec.workdir,
        tmpfs=writable(spec),
        shm_bytes=SHM_BYTES,
    )
    directory = record.directory
    _write_private(directory / CLIENT_KEY, keys.client_private)
    initrd = (image / INITRD_FILE).read_bytes() + config_archive(configuration.files(keys))
    if spec.app:
        archive = b"".join(app_archive(record.app_path))
        _refuse_too_large(len(archive), spec.memory)
        initrd += archive
    _write_private(directory / INITRD, initrd, owner)
    # Created here with its owner, in case libvirt is configured to let QEMU write it.
    _write_private(directory / CONSOLE_LOG, b"", owner)


def _refuse_too_large(size: int, memory: int) -> None:
    """Refuse an application that does not fit into the guest's memory, which holds it twice while it is unpacked.

    Raises:
        SpecError
    """
    needed = MIN_MEMORY + 2 * size
    if memory < needed:
        raise SpecError(
            f"--memory {memory // MIB}m is too little for a machine with an application of {size / MIB:.0f} MiB",
            f"at least {math.ceil(needed / MIB)}m",
        )


def _plan(spec: SandboxSpec, record: Record, image: Path, accelerator: str, owner: tuple[int, int]) -> DomainPlan:
    return DomainPlan(
        ident=record.id,
        accelerator=accelerator,
        vcpus=math.ceil(spec.cpus),
        quota=spec.cpus if cgroup.hierarchy().has("cpu") else None,
        cpuset=spec.cpuset,
        memory=spec.memory,
        kernel=image / KERNEL_FILE,
        initrd=record.directory / INITRD,
        disk=image / DISK_FILE,
        bridge=lab.BRIDGE,
        interface=lab.interface_name(record.id),
        mac=record.mac,
        console=record.directory / CONSOLE,
        console_log=record.directory / CONSOLE_LOG,
        ports=[record.directory / name for name in output.PORTS],
        owner=f"+{owner[0]}:+{owner[1]}",
    )


def _write_private(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> None:
    """Create a file that only its owner can read, and write to it.

    Raises:
        OSError
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        file.write(content)
