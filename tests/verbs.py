"""The verbs of `sandbox.lifecycle` under one name, for tests that use several."""

from __future__ import annotations

from typing import Any

from sandbox.lifecycle import find, lab, prune, remove, run, start, stop
from sandbox.lifecycle.find import Running
from sandbox.request import resolve
from sandbox.request.resolve import Target
from sandbox.spec import SandboxSpec
from sandbox.state.store import Store

__all__ = ["Manager", "Running"]


class Manager:
    """Runs, finds and removes sandboxes."""

    store = Store()
    run = staticmethod(run.run)
    running = staticmethod(start.running)
    lab = staticmethod(lab.use)
    get = staticmethod(find.get)
    held = staticmethod(find.held)
    everything = staticmethod(find.everything)
    stop = staticmethod(stop.stop)
    remove = staticmethod(remove.remove)
    prune = staticmethod(prune.prune)

    @staticmethod
    def make_spec(target: Target, isolation: str, **options: Any) -> SandboxSpec:
        """The spec of what a user would type."""
        return resolve.make(target, isolation, resolve.Options(**options)).spec

    @staticmethod
    def destroy(running: Running) -> None:
        """Remove a sandbox, running or not, by its handle."""
        remove.remove(running, force=True)
