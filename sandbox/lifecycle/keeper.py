"""What stays of `sandbox run -d` at the local levels: the parent of the init, which alone learns its exit code.

A process of its own, run as a program by the bare interpreter (`python3 -I -S monitor.py`), so that it is small: 3 MiB
(PSS), for nothing of this package is imported before the workload ends. Then it writes the exit code to a file, notes
the end in the record, and removes the sandbox where that was asked for.
"""

from __future__ import annotations

import os
import select
import sys
import time

_PATIENCE = 2.0
"""Seconds."""
KEEP, TELL, REMOVE = "keep", "tell", "remove"
"""What to do at the end: note it in the record alone; run `note_end`, which withdraws published ports; remove it."""
_FINISH = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.lifecycle.keeper import finish; finish(*sys.argv[2:])"
)


def command(ident: str, pid: int, code_file: str, then: str) -> list[str]:
    """The program that waits for a child of the process that execs it.

    Args:
        ident: the sandbox's id; it shows in the list of processes.
        pid: of the sandbox's init.
        code_file: where its exit code goes.
        then: KEEP, TELL or REMOVE.
    """
    program = os.path.abspath(__file__)
    package = os.path.dirname(os.path.dirname(os.path.dirname(program)))
    return [sys.executable, "-I", "-S", program, f"sbx-{ident}", str(pid), code_file, then, package]


def main(label: str, pid: str, code_file: str, then: str, package: str) -> None:
    """Wait for the end, write it down, and do what was asked for then."""
    code = _wait(int(pid))
    if code is None:
        code = _told(code_file)
    else:
        temporary = f"{code_file}.new"
        try:
            with open(temporary, "w", encoding="ascii") as stream:
                stream.write(str(code))
            os.rename(temporary, code_file)
        except FileNotFoundError:
            return  # it has been removed, and its directory with it
    ident = label.removeprefix("sbx-")
    if then == KEEP:
        sys.path.insert(0, package)
        _note(ident, code)
    else:
        # What that imports needs the interpreter with its site packages.
        argv = [sys.executable, "-I", "-c", _FINISH, package, ident, "" if code is None else str(code), then]
        os.execv(sys.executable, argv)  # noqa: S606 - no shell is the point


def _wait(pid: int) -> int | None:
    """The exit code as a shell would say it; None where the init is not our child (a warm start's is the zygote's)."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll()
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _told(code_file: str) -> int | None:
    """The exit code as the init's parent wrote it, which does so within an instant of the end."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            with open(code_file, encoding="ascii") as stream:
                return int(stream.read())
        except (OSError, ValueError):
            time.sleep(0.01)
    return None


def _note(ident: str, code: int | None) -> None:
    from sandbox.errors import NotFoundError
    from sandbox.phases import Status
    from sandbox.state.record import Exit
    from sandbox.state.store import Store

    store = Store()
    try:
        with store.lock(ident):
            record = store.load(ident)
            record.status = Status.EXITED
            record.exit = Exit(code, time.time())
            store.save(record)
    except NotFoundError:
        return  # somebody has removed it


def finish(ident: str, code: str, then: str) -> None:
    """What needs the rest of this package: `TELL` or `REMOVE`.

    Raises:
        SandboxError: nobody listens; `sandbox prune` does what could not be done.
    """
    from sandbox.errors import NotFoundError
    from sandbox.lifecycle.remove import remove
    from sandbox.lifecycle.stop import note_end

    if then == TELL:
        note_end(ident, int(code) if code else None)
        return
    try:
        remove(ident, force=True)
    except NotFoundError:
        return  # somebody was quicker


if __name__ == "__main__":
    main(*sys.argv[1:])
