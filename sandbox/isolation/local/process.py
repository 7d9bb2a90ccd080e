"""Level `process`: a chroot, another user and a control group. It is the baseline for comparisons, not a boundary."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from sandbox.errors import EngineError
from sandbox.failpoints import Failpoint, reached
from sandbox.isolation.base import Features, Isolation, Progress, environment
from sandbox.isolation.local import mounts
from sandbox.isolation.local import sandbox as local
from sandbox.isolation.local.output import Outputs
from sandbox.kernel import cgroup, enter, rootfs, syscalls
from sandbox.kernel.cgroup import Group
from sandbox.kernel.command import Place
from sandbox.network import lab
from sandbox.spec import SANDBOX_UID, SandboxSpec
from sandbox.state import files, paths
from sandbox.state.record import Record
from sandbox.state.store import Store

ROOT_DIR = "root"
"""The mount point's name in the sandbox's directory. Mounts are made in the host's mount namespace at this level."""

INIT = ("/usr/bin/tini", "-s", "--")
"""The init is not process 1 here, so `-s` makes it adopt orphans by prctl(PR_SET_CHILD_SUBREAPER)."""


class ProcessIsolation(Isolation):
    """The driver of the level `process`, which isolates nearly nothing."""

    name = "process"
    features = Features(shares_kernel=True, own_network=False)
    _image: str | None = None

    def check(self, spec: SandboxSpec) -> None:
        mounts.check(spec)

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._image = local.prepare_root(progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> ProcessSandbox:
        group = Group(record.id)
        sandbox = ProcessSandbox(record)
        root = record.directory / ROOT_DIR
        undo.callback(sandbox.remove)
        try:
            group.create()
            group.limit(cpus=spec.cpus, memory=spec.memory, pids=spec.pids_limit, cpuset=spec.cpuset)
            reached(Failpoint.CGROUP_MADE)
            root.mkdir(exist_ok=True)
            image = self._image or local.root_path()
            with mounts.layout(spec, record, image) as layout:
                rootfs.assemble(image, str(root), layout)
            reached(Failpoint.ROOT_MOUNTED)
            lab.serve_on_host(record.address)
            reached(Failpoint.ADDRESS_SERVED)
            with Outputs(record, SANDBOX_UID, group.oom_file()) as outputs:
                plan = enter.Plan(
                    argv=(*INIT, *spec.argv),
                    env=tuple(environment(spec).items()),
                    uid=SANDBOX_UID,
                    root=str(root),
                    outputs=outputs.writing,
                    cgroup_files=tuple(str(path) for path in group.join_files()),
                    workdir=spec.workdir,
                    program=spec.argv[0],
                )
                child = enter.spawn_chrooted(plan, outputs.start)
            sandbox.adopt_child(child, outputs.keeper)
        except OSError as error:
            raise EngineError(f"the process could not be created: {error}") from error
        local.remember(record, child)
        reached(Failpoint.CHILD_READY)
        return sandbox

    def adopt(self, record: Record) -> ProcessSandbox:
        return ProcessSandbox(record)

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = local.prune_groups(known, dry_run=dry_run)
        for target in _mounted_roots():
            ident = target.parent.name
            if ident not in known:
                if not dry_run:
                    _unmount(target)
                found.append(f"mount {target}")
        for address in lab.stray_addresses(Store()):
            if not dry_run:
                lab.unserve_on_host(address)
            found.append(f"address {address} on {lab.BRIDGE}")
        return found

    def remove_shared(self) -> list[str]:
        cgroup.remove_parent()
        return []


class ProcessSandbox(local.LocalSandbox):
    """A sandbox that is a process in a chroot."""

    def _outside(self, uid: int) -> int:
        return uid

    @property
    def _root(self) -> Path:
        return self.record.directory / ROOT_DIR

    def _place(self, uid: int) -> Place:
        files = tuple(str(path) for path in self.group.join_files())
        return Place(files, uid, root=str(self._root))

    def _network_bytes(self) -> tuple[int | None, int | None]:
        return None, None  # the host's interfaces are shared

    def remove(self) -> None:
        self._end()
        try:
            _unmount(self._root)
            if files.is_directory(self._root):
                self._root.rmdir()
        except OSError as error:
            raise EngineError(f"the root of {self.record.name} could not be unmounted: {error}") from error
        reached(Failpoint.ROOT_UNMOUNTED)
        lab.unserve_on_host(self.record.address)


def _mounted_roots() -> list[Path]:
    """Return the mount points of our sandboxes' roots, once for each mount there."""
    base = Path(os.path.realpath(paths.sandboxes_dir()))
    targets = [Path(point) for point in files.mounts_below(base)]
    return [one for one in targets if one.name == ROOT_DIR and one.parent.parent == base]


def _unmount(root: Path) -> None:
    """Detach all trees of mounts at a root.

    os.path.ismount is not enough: it does not detect a bind mount within one file system.
    """
    real = Path(os.path.realpath(root.parent)) / root.name
    for target in _mounted_roots():
        if target == real:
            syscalls.umount(root, syscalls.MNT_DETACH)
