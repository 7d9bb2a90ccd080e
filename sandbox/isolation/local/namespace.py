"""Level `namespace`: fresh namespaces, a user mapping, seccomp, no capabilities, cgroup limits. No daemon.

The embedded default: the kernel alone, nothing to install beside the root filesystem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from sandbox import workloads
from sandbox.errors import EngineError
from sandbox.failpoints import Failpoint, reached
from sandbox.host import Missing
from sandbox.isolation.base import INIT, Isolation, Progress, environment
from sandbox.isolation.local import inspection, mounts
from sandbox.isolation.local import sandbox as local
from sandbox.isolation.local import warm as local_warm
from sandbox.isolation.local.output import Outputs
from sandbox.kernel import cgroup, enter, seccomp, zygote
from sandbox.kernel.cgroup import Group
from sandbox.kernel.command import Place
from sandbox.network import lab
from sandbox.spec import SANDBOX_UID, SandboxSpec
from sandbox.state.record import Record

MAP_BASE = 1_879_048_192
"""First id outside for id 0 inside (0x70000000): far above what adduser, subuid(5) and systemd's ranges hand out, see
systemd's UIDS-GIDS. Every sandbox has the same range, since the process limits that matter are the cgroup's."""

LINK = "eth0"
"""Its end of the link to the lab network, inside."""


class NamespaceIsolation(Isolation):
    """The kernel's own walls."""

    name = "namespace"
    shares_kernel = True
    _root: str | None = None

    def missing(self) -> Sequence[Missing]:
        return local.missing(self.name)

    def check(self, spec: SandboxSpec) -> None:
        mounts.check(spec)

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._root = local.prepare_root(progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> NamespaceSandbox:
        group = Group(record.id)
        sandbox = NamespaceSandbox(record)
        undo.callback(sandbox.destroy)
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
            raise EngineError(f"the namespaces could not be made: {error}") from error
        local.remember(record, child)
        reached(Failpoint.CHILD_READY)
        return sandbox

    def adopt(self, record: Record) -> NamespaceSandbox:
        return NamespaceSandbox(record)

    def sweep(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Links of namespaces; control groups, which `process` has too, are cleared by whichever comes first."""
        found = []
        for name in lab.stray_links(known):
            if not dry_run:
                lab.delete_link(name)
            found.append(f"link {name}")
        return found + local.sweep_groups(known, dry_run=dry_run)

    def release(self) -> list[str]:
        cgroup.remove_parent()
        return []


def _warm(plan: enter.Plan, outputs: Outputs, plug: Callable[[int], None], enrol: enter.Enrol) -> enter.Child:
    """A child of the zygote's, which tells its exit code by a pipe."""
    # The zygote takes a server's own arguments in place of a command line.
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
    """One sandbox in namespaces."""

    def _outside(self, uid: int) -> int:
        return MAP_BASE + uid

    def _place(self, uid: int) -> Place:
        return Place(tuple(str(path) for path in self.group.join_files()), uid, pid=self._pid())

    def _network_bytes(self) -> tuple[int | None, int | None]:
        process = self._init()
        links = inspection.interfaces(None if process is None else process.pid)
        own = (links or {}).get(LINK)
        return (own["received"], own["sent"]) if own is not None else (None, None)

    def destroy(self) -> None:
        self._end()
        # The link dies with its namespace, a moment later; one that outlives its sandbox is deleted by `prune`. Not
        # sooner: whoever is connected is told of the end by the kernel.
        lab.unplug(self.record.id)
