"""Level `process`: the control. A chroot, another user and a control group; no other wall, and no claim to be one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from sandbox import network, paths
from sandbox.capability import Missing
from sandbox.errors import EngineError
from sandbox.isolation import local
from sandbox.isolation.base import TMPFS_BYTES, TMPFS_DIRS, Isolation, Progress, environment
from sandbox.kernel import cgroup, enter, rootfs, syscalls
from sandbox.kernel.cgroup import Group
from sandbox.record import Record
from sandbox.spec import SANDBOX_UID, SandboxSpec
from sandbox.store import Store

ROOT_DIR = "root"
"""The mount point below the sandbox's directory. The mounts are the host's own: a mount namespace would be a wall."""

INIT = ("/usr/bin/tini", "-s", "--")
"""Not pid 1 here, so it asks to reap orphans by prctl(PR_SET_CHILD_SUBREAPER)."""


class ProcessIsolation(Isolation):
    """No isolation to speak of."""

    name = "process"
    shares_kernel = True
    own_network = False
    _image: str | None = None

    def missing(self) -> Sequence[Missing]:
        return local.missing(self.name)

    def check(self, spec: SandboxSpec) -> None:
        """Every field of the spec can be honoured."""

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._image = local.prepare_root(progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> ProcessSandbox:
        group = Group(record.id)
        sandbox = ProcessSandbox(record)
        root = record.directory / ROOT_DIR
        undo.callback(sandbox.destroy)
        try:
            group.create()
            group.limit(cpus=spec.cpus, memory=spec.memory, pids=spec.pids_limit, cpuset=spec.cpuset)
            root.mkdir(exist_ok=True)
            rootfs.assemble(self._image or local.root_path(), str(root), tuple(TMPFS_DIRS.items()), TMPFS_BYTES)
            network.serve_on_host(record.address)
            child = enter.spawn_chrooted(
                enter.Plan(
                    argv=(*INIT, *spec.argv),
                    env=tuple(environment(spec).items()),
                    uid=SANDBOX_UID,
                    root=str(root),
                    log=str(record.log_path),
                    cgroup_files=tuple(str(path) for path in group.join_files()),
                )
            )
        except OSError as error:
            raise EngineError(f"the process could not be made: {error}") from error
        sandbox.adopt_child(child)
        local.remember(record, child)
        return sandbox

    def adopt(self, record: Record) -> ProcessSandbox:
        return ProcessSandbox(record)

    def sweep(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = local.sweep_groups(known, dry_run=dry_run)
        for target in _mounted_roots():
            ident = target.parent.name
            if ident not in known:
                if not dry_run:
                    _unmount(target)
                found.append(f"mount {target}")
        for address in network.stray_addresses(Store().used_addresses()):
            if not dry_run:
                network.unserve_on_host(address)
            found.append(f"address {address} on {network.BRIDGE}")
        return found

    def release(self) -> list[str]:
        cgroup.remove_parent()
        return []


class ProcessSandbox(local.LocalSandbox):
    """One process in a chroot."""

    @property
    def _root(self) -> Path:
        return self.record.directory / ROOT_DIR

    def _joiner(self, uid: int) -> Callable[[], None]:
        files = [str(path) for path in self.group.join_files()]
        return enter.chroot_joiner(str(self._root), files, uid)

    def destroy(self) -> None:
        self._end()
        try:
            _unmount(self._root)
            if self._root.is_dir():
                self._root.rmdir()
        except OSError as error:
            raise EngineError(f"the root of {self.record.name} could not be unmounted: {error}") from error
        network.unserve_on_host(self.record.address)


def _mounted_roots() -> list[Path]:
    """Mount points of our roots, whoever made them (proc_pid_mountinfo(5); octal escapes do not occur in ours)."""
    base = paths.sandboxes_dir()
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        targets = [Path(line.split()[4]) for line in stream]
    return [one for one in targets if one.name == ROOT_DIR and one.parent.parent == base]


def _unmount(root: Path) -> None:
    """Detach the whole tree of mounts at a root, as often as something is mounted there.

    os.path.ismount would not do: it does not see a bind mount within one file system.
    """
    for target in _mounted_roots():
        if target == root:
            syscalls.umount(root, syscalls.MNT_DETACH)
