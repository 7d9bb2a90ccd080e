"""Run a sandbox, by a normal or a warm start."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.isolation.base import Progress
from sandbox.lifecycle import start
from sandbox.lifecycle.find import Running
from sandbox.spec import SandboxSpec

if TYPE_CHECKING:
    from sandbox.request.application import Application


def run(
    spec: SandboxSpec,
    *,
    application: Application | None = None,
    progress: Progress = start.silent,
    owner: bool = False,
    follow: bool = False,
    remove: bool = False,
    warm: bool = False,
    then: Callable[[Running], object] | None = None,
) -> Running:
    """Bring a sandbox up to its first correct reply, see `start.start`.

    Args:
        spec: from `request.resolve.make`.
        application: of the same request; its files are copied into the sandbox.
        progress: called with a line per step.
        owner: tie the sandbox to this process.
        follow: the caller reads `sandbox.output()`.
        remove: without an owner, remove the sandbox when the workload ends by itself.
        warm: use a start that `sandbox warm` has prepared.
        then: called with the sandbox once it is up.

    Raises:
        SandboxError: the start failed; nothing is left behind.
    """
    if warm:
        from sandbox.lifecycle import warm as prepared  # most starts are not

        return prepared.start_warm(spec, progress=progress, owner=owner, follow=follow, remove=remove, then=then)
    return start.start(
        spec, application=application, progress=progress, owner=owner, follow=follow, remove=remove, then=then
    )
