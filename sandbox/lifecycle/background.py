"""The end of a sandbox that nobody follows, by its keeper: note it, withdraw its ports, remove it.

The keeper becomes this by exec. For NOTE the store is enough, which the bare interpreter can import; the rest needs the
manager, and the interpreter with its site packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import EngineError
from sandbox.isolation import keeper

if TYPE_CHECKING:
    from sandbox.lifecycle.find import Running


def detach(running: Running, *, remove: bool) -> None:
    """Leave a sandbox to its keeper.

    Args:
        running: the same.
        remove: whether it is removed when the workload ends by itself.

    Raises:
        EngineError: its keeper is gone.
    """
    if running.sandbox.keeper is not None:
        then = keeper.REMOVE if remove else keeper.NOTIFY if running.record.spec.publish else keeper.NOTE
        try:
            running.sandbox.keeper.detach(then)
        except OSError as error:
            raise EngineError(f"the keeper of {running.record.name} was ended: {error.strerror}") from error


def finish(label: str, code: str, then: str) -> None:
    """Do what was asked for.

    Args:
        label: the sandbox's id, after "sbx-"; it shows in the list of processes.
        code: the exit code in digits; empty where only the level's engine knows it.
        then: NOTE, TELL or REMOVE.

    Raises:
        SandboxError: nobody listens; `sandbox prune` does what could not be done.
    """
    ident = label.removeprefix("sbx-")
    if then == keeper.NOTE:
        _note(ident, int(code) if code else None)
        return
    from sandbox.errors import NotFoundError
    from sandbox.lifecycle.find import get
    from sandbox.lifecycle.remove import remove
    from sandbox.lifecycle.stop import note_end

    try:
        if then == keeper.REMOVE:
            remove(ident, force=True)
        else:
            note_end(ident, int(code) if code else get(ident).sandbox.state().exit_code)
    except NotFoundError:
        return  # somebody was quicker


def _note(ident: str, code: int | None) -> None:
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
    except NotFoundError:
        return  # somebody has removed it
