"""Run a sandbox: from nothing, or from what was prepared."""

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
        spec: as of `request.resolve.make`.
        application: whose files it sees; of the same request.
        progress: called with a line per step.
        owner: tie the sandbox to this process.
        follow: the caller reads `sandbox.output()`.
        remove: where nobody owns it, remove it when the workload ends by itself.
        warm: start from what `sandbox warm` has prepared.
        then: called with it once it is up.

    Raises:
        SandboxError: of the kind that fits; nothing is left.
    """
    if warm:
        from sandbox.lifecycle import warm as prepared  # most starts are not

        return prepared.start_warm(spec, progress=progress, owner=owner, follow=follow, remove=remove, then=then)
    return start.start(
        spec, application=application, progress=progress, owner=owner, follow=follow, remove=remove, then=then
    )
