"""Level `namespace`: fresh namespaces, a user mapping, seccomp, no capabilities, cgroup limits. No daemon.

The embedded default: the kernel alone, nothing to install beside the root filesystem.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from functools import partial

from sandbox import network
from sandbox.capability import Missing
from sandbox.errors import EngineError
from sandbox.isolation import local
from sandbox.isolation.base import INIT, TMPFS_BYTES, TMPFS_DIRS, Isolation, Progress, environment
from sandbox.kernel import cgroup, enter
from sandbox.kernel.cgroup import Group
from sandbox.record import Record
from sandbox.spec import SANDBOX_UID, SandboxSpec

MAP_BASE = 1_879_048_192
"""First id outside for id 0 inside (0x70000000): far above what adduser, subuid(5) and systemd's ranges hand out, see
systemd's UIDS-GIDS. Every sandbox has the same range, since the process limits that matter are the cgroup's."""


class NamespaceIsolation(Isolation):
    """The kernel's own walls."""

    name = "namespace"
    shares_kernel = True
    _root: str | None = None

    def missing(self) -> Sequence[Missing]:
        return local.missing(self.name)

    def check(self, spec: SandboxSpec) -> None:
        """Every field of the spec can be honoured."""

    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        self._root = local.prepare_root(progress)

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> NamespaceSandbox:
        group = Group(record.id)
        sandbox = NamespaceSandbox(record)
        undo.callback(sandbox.destroy)
        try:
            group.create()
            group.limit(cpus=spec.cpus, memory=spec.memory, pids=spec.pids_limit, cpuset=spec.cpuset)
            plan = enter.Plan(
                argv=(*INIT, *spec.argv),
                env=tuple(environment(spec).items()),
                uid=SANDBOX_UID,
                root=self._root or local.root_path(),
                log=str(record.log_path),
                cgroup_files=tuple(str(path) for path in group.join_files()),
                hostname=spec.name,
                address=(record.address, network.NETMASK),
                tmpfs=tuple(TMPFS_DIRS.items()),
                tmpfs_bytes=TMPFS_BYTES,
            )
            child = enter.spawn_namespaced(plan, MAP_BASE, partial(network.attach, record.id, record.mac))
        except OSError as error:
            raise EngineError(f"the namespaces could not be made: {error}") from error
        sandbox.adopt_child(child)
        local.remember(record, child)
        return sandbox

    def adopt(self, record: Record) -> NamespaceSandbox:
        return NamespaceSandbox(record)

    def sweep(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Links of namespaces; control groups, which `process` has too, are cleared by whichever comes first."""
        found = []
        for name in network.stray_links(known):
            if not dry_run:
                network.delete_link(name)
            found.append(f"link {name}")
        return found + local.sweep_groups(known, dry_run=dry_run)

    def release(self) -> list[str]:
        cgroup.remove_parent()
        return []


class NamespaceSandbox(local.LocalSandbox):
    """One sandbox in namespaces."""

    def _joiner(self, uid: int) -> Callable[[], None]:
        files = [str(path) for path in self.group.join_files()]
        return enter.joiner(self._pid(), files, uid)

    def destroy(self) -> None:
        self._end()
        # The link dies with its namespace, a moment later; one that outlives its sandbox is deleted by `prune`.
