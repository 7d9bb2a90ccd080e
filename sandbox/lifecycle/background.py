"""The actions of a keeper when a sandbox in the background ends: record it, withdraw its ports, remove it.

The keeper runs `finish` after an exec. NOTE needs only the store, which the bare interpreter can import; the other
actions need the manager, and an interpreter with its site packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import EngineError
from sandbox.isolation import keeper

if TYPE_CHECKING:
    from sandbox.lifecycle.find import Running


def detach(running: Running, *, remove: bool) -> None:
    """Leave a sandbox running in the background, watched by its keeper.

    Args:
        running: the sandbox.
        remove: remove it when the workload ends by itself.

    Raises:
        EngineError: its keeper has ended.
    """
    if running.sandbox.keeper is not None:
        action = keeper.REMOVE if remove else keeper.NOTIFY if running.record.spec.publish else keeper.NOTE
        try:
            running.sandbox.keeper.detach(action)
        except OSError as error:
            raise EngineError(f"the keeper of {running.record.name} has ended: {error.strerror}") from error


def finish(label: str, code: str, action: str) -> None:
    """Do the keeper's action after a sandbox has ended.

    Args:
        label: "sbx-" and the sandbox's id; it is visible in the process list.
        code: the exit code in digits; empty if only the level's engine has it.
        action: NOTE, NOTIFY or REMOVE.

    Raises:
        SandboxError: the action failed; `sandbox prune` can do the rest.
    """
    ident = label.removeprefix("sbx-")
    if action == keeper.NOTE:
        if _note(ident, int(code) if code else None):
            keeper.act(label, code, keeper.REMOVE)
        return
    from sandbox.errors import NotFoundError
    from sandbox.lifecycle.find import get
    from sandbox.lifecycle.remove import remove
    from sandbox.lifecycle.stop import note_end

    try:
        if action == keeper.REMOVE:
            remove(ident, force=True)
        else:
            note_end(ident, int(code) if code else get(ident).sandbox.state().exit_code)
    except NotFoundError:
        return  # another command has removed it


def _note(ident: str, code: int | None) -> bool:
    """Record the end; return whether the sandbox is to be removed."""
    from sandbox.errors import NotFoundError
    from sandbox.isolation import ending
    from sandbox.phases import Status
    from sandbox.state.store import Store

    store = Store()
    try:
        with store.lock(ident):
            record = store.load(ident)
            record.status = Status.EXITED
            if record.exit_code is None:
                record.exit = ending.noted(record.directory, code)
            store.save(record)
            return record.remove_at_end
    except NotFoundError:
        return False  # another command has removed it
