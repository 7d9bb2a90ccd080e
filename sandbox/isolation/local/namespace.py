"""Level `namespace`: new namespaces, mapped user ids, seccomp, no capabilities, cgroup limits; no daemon.

It is the default level, because it needs only the kernel and the root filesystem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from sandbox import images, workloads
from sandbox.errors import EngineError
from sandbox.failpoints import Failpoint, reached
from sandbox.isolation.base import INIT, Features, Forking, Isolation, Progress, environment
from sandbox.isolation.local import mounts
from sandbox.isolation.local import sandbox as local
from sandbox.isolation.local import warm as local_warm
from sandbox.isolation.local.output import Outputs
from sandbox.kernel import cgroup, enter, procfs, seccomp, zygote
from sandbox.kernel.cgroup import Group
from sandbox.kernel.command import Place
from sandbox.network import lab
from sandbox.spec import SANDBOX_UID, SandboxSpec
from sandbox.state.record import Record

MAP_BASE = 1_879_048_192
"""The id outside for id 0 inside (0x70000000). It is far above the ranges of adduser, subuid(5) and systemd (see
systemd's UIDS-GIDS). All sandboxes share the range, since the limits on processes are enforced by their cgroups."""

LINK = "eth0"
"""The sandbox's end of its link to the lab network."""


class NamespaceIsolation(Isolation, Forking):
    """The driver of the level `namespace`."""

    name = "namespace"
    features = Features(
        shares_kernel=True,
        requires=("ns.user", "ns.mount", "ns.pid", "ns.net", "ns.ipc", "ns.uts", "ns.cgroup", "seccomp"),
    )
    _root: str | None = None

    def check(self, spec: SandboxSpec) -> None:
        mounts.check(spec)

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._root = local.prepare_root(progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> NamespaceSandbox:
        group = Group(record.id)
        sandbox = NamespaceSandbox(record)
        undo.callback(sandbox.remove)
        try:
            image = self._root or local.root_path()
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
                    child = _warm(plan, outputs, plug, enrol)
                else:
                    child = enter.spawn_namespaced(plan, MAP_BASE, plug, outputs.start, enrol)
            sandbox.adopt_child(child, outputs.keeper)
        except OSError as error:
            raise EngineError(f"the namespaces could not be created: {error}") from error
        local.remember(record, child)
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
        return found + local.prune_groups(known, dry_run=dry_run)

    def remove_shared(self) -> list[str]:
        cgroup.remove_parent()
        return []

    def start_zygote(self, progress: Progress) -> None:
        image = images.ensure(images.Form.ROOTFS, progress)
        local_warm.start(str(image.path), image.digest)

    def zygote(self, *, current: bool = False) -> int | None:
        found = local_warm.running(images.digest(images.Form.ROOTFS) if current else None)
        return None if found is None else found.pid

    def stop_zygote(self) -> bool:
        return local_warm.stop()


def _warm(plan: enter.Plan, outputs: Outputs, plug: Callable[[int], None], enrol: enter.Enrol) -> enter.Child:
    """Create a child of the zygote, which reports the child's exit code through a pipe."""
    # The zygote expects a server's own arguments instead of a command line.
    request = zygote.pack(replace(plan, argv=workloads.arguments(plan.argv[len(INIT) :])), seccomp.build())
    status_read, status_write = os.pipe()
    try:
        child = enter.spawn_warm(plan, MAP_BASE, plug, local_warm.asker(request, status_write), enrol)
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


class NamespaceSandbox(local.LocalSandbox):
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
