"""The drivers of the levels `process` and `namespace`: processes of this host's kernel, without an engine.

`process` is a chroot, another user and a control group: the baseline for comparisons, not a boundary. `namespace` adds
new namespaces, mapped user ids, seccomp and the loss of all capabilities. It is the default level, because it needs
only the kernel and the root filesystem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from sandbox import images, workloads
from sandbox.errors import EngineError
from sandbox.failpoints import Failpoint, reached
from sandbox.isolation.base import INIT, Features, Forking, Isolation, Progress, environment
from sandbox.isolation.local import mounts, warm
from sandbox.isolation.local.output import Outputs
from sandbox.isolation.local.sandbox import LocalSandbox, prepare_root, prune_groups, remember, root_path
from sandbox.kernel import cgroup, enter, procfs, rootfs, seccomp, syscalls, zygote
from sandbox.kernel.cgroup import Group
from sandbox.kernel.command import Place
from sandbox.network import lab
from sandbox.spec import SANDBOX_UID, SandboxSpec
from sandbox.state import files, paths
from sandbox.state.record import Record
from sandbox.state.store import Store

ROOT_DIR = "root"
"""The mount point's name in a sandbox's directory at `process`, whose mounts are in the host's mount namespace."""

SUBREAPER_INIT = (INIT[0], "-s", *INIT[1:])
"""The init at `process`, where it is not process 1: `-s` makes it adopt orphans (prctl(2), PR_SET_CHILD_SUBREAPER)."""

MAP_BASE = 1_879_048_192
"""The id outside for id 0 inside (0x70000000). It is far above the ranges of adduser, subuid(5) and systemd (see
systemd's UIDS-GIDS). All sandboxes share the range, since the limits on processes are enforced by their cgroups."""

LINK = "eth0"
"""The sandbox's end of its link to the lab network."""


class LocalIsolation(Isolation):
    """The part that both drivers share."""

    _image: str | None = None

    def check(self, spec: SandboxSpec) -> None:
        mounts.check(spec)

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._image = prepare_root(progress)

    def remove_shared(self) -> list[str]:
        cgroup.remove_parent()
        return []


class ProcessIsolation(LocalIsolation):
    """The driver of the level `process`, which isolates nearly nothing."""

    name = "process"
    features = Features(shares_kernel=True, own_network=False)

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
            image = self._image or root_path()
            with mounts.layout(spec, record, image) as layout:
                rootfs.assemble(image, str(root), layout)
            reached(Failpoint.ROOT_MOUNTED)
            lab.serve_on_host(record.address)
            reached(Failpoint.ADDRESS_SERVED)
            with Outputs(record, SANDBOX_UID, group.oom_file()) as outputs:
                plan = enter.Plan(
                    argv=(*SUBREAPER_INIT, *spec.argv),
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
        remember(record, child)
        reached(Failpoint.CHILD_READY)
        return sandbox

    def adopt(self, record: Record) -> ProcessSandbox:
        return ProcessSandbox(record)

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        found = prune_groups(known, dry_run=dry_run)
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


class ProcessSandbox(LocalSandbox):
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


class NamespaceIsolation(LocalIsolation, Forking):
    """The driver of the level `namespace`."""

    name = "namespace"
    features = Features(
        shares_kernel=True,
        requires=("ns.user", "ns.mount", "ns.pid", "ns.net", "ns.ipc", "ns.uts", "ns.cgroup", "seccomp"),
    )

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> NamespaceSandbox:
        group = Group(record.id)
        sandbox = NamespaceSandbox(record)
        undo.callback(sandbox.remove)
        try:
            image = self._image or root_path()
            with (
                mounts.layout(spec, record, image) as layout,
                Outputs(record, MAP_BASE + SANDBOX_UID, group.oom_file()) as outputs,
            ):
                plan = enter.Plan(
                    argv=(*INIT, *spec.argv),
                    env=tuple(environment(spec).items()),
                    uid=SANDBOX_UID,
                    root=image,
                    outputs=outputs.writing,
                    cgroup_files=tuple(str(path) for path in group.join_files()),
                    hostname=spec.name,
                    layout=layout,
                    workdir=spec.workdir,
                    program=spec.argv[0],
                )
                plug, enrol = partial(_plug, record), partial(_enrol, group, spec)
                if spec.warm:
                    child = _spawn_warm(plan, outputs, plug, enrol)
                else:
                    child = enter.spawn_namespaced(plan, MAP_BASE, plug, outputs.start, enrol)
            sandbox.adopt_child(child, outputs.keeper)
        except OSError as error:
            raise EngineError(f"the namespaces could not be created: {error}") from error
        remember(record, child)
        reached(Failpoint.CHILD_READY)
        return sandbox

    def adopt(self, record: Record) -> NamespaceSandbox:
        return NamespaceSandbox(record)

    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Remove stray links and control groups; the latter may also be left from the level `process`."""
        found = []
        for name in lab.stray_links(known):
            if not dry_run:
                lab.delete_link(name)
            found.append(f"link {name}")
        return found + prune_groups(known, dry_run=dry_run)

    def start_zygote(self, progress: Progress) -> None:
        image = images.ensure(images.Form.ROOTFS, progress)
        warm.start(str(image.path), image.digest)

    def zygote(self, *, current: bool = False) -> int | None:
        found = warm.running(images.digest(images.Form.ROOTFS) if current else None)
        return None if found is None else found.pid

    def stop_zygote(self) -> bool:
        return warm.stop()


def _spawn_warm(plan: enter.Plan, outputs: Outputs, plug: Callable[[int], None], enrol: enter.Enrol) -> enter.Child:
    """Create a child of the zygote, which reports the child's exit code through a pipe."""
    # The zygote expects a server's own arguments instead of a command line.
    request = zygote.pack(replace(plan, argv=workloads.arguments(plan.argv[len(INIT) :])), seccomp.build())
    status_read, status_write = os.pipe()
    try:
        child = enter.spawn_warm(plan, MAP_BASE, plug, warm.asker(request, status_write), enrol)
    except BaseException:
        os.close(status_read)
        raise
    finally:
        os.close(status_write)
    try:
        outputs.watch(child.pid, status_read)
    except BaseException:
        child.close()
        raise
    return child


def _enrol(group: Group, spec: SandboxSpec) -> None:
    reached(Failpoint.NAMESPACES_MADE)
    group.create()
    group.limit(cpus=spec.cpus, memory=spec.memory, pids=spec.pids_limit, cpuset=spec.cpuset)
    reached(Failpoint.CGROUP_MADE)


def _plug(record: Record, pid: int) -> None:
    lab.attach(record.id, record.mac, pid, record.address)
    reached(Failpoint.LINK_PLUGGED)


class NamespaceSandbox(LocalSandbox):
    """A sandbox in namespaces of its own."""

    def _outside(self, uid: int) -> int:
        return MAP_BASE + uid

    def _place(self, uid: int) -> Place:
        return Place(tuple(str(path) for path in self.group.join_files()), uid, pid=self._pid())

    def _network_bytes(self) -> tuple[int | None, int | None]:
        process = self._init()
        return (None, None) if process is None else procfs.traffic(process.pid, LINK)

    def remove(self) -> None:
        self._end()
        # The kernel removes the link with its network namespace, a moment later; `prune` deletes one that remains. It
        # is not removed earlier, so that the kernel can still reset open connections.
        lab.unplug(self.record.id)
