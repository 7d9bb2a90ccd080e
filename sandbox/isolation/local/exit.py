"""How a local sandbox ended, told by the process that is the parent of its init to those that are not.

Only a parent learns an exit code. A detached sandbox's is kept by its monitor (`sandbox.lifecycle.keeper`), which
writes it to a file of its own before anything else: no lock is needed for that, and a command that holds the sandbox's
lock while it waits for the end still learns it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from sandbox.isolation.local import warm as local_warm
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record

MONITOR_FILE = "monitor"
EXIT_FILE = "exit"
_PATIENCE = 2.0
"""Seconds that a monitor gets to write the code after the init's end; it takes milliseconds."""
_LOOK = 0.002


def announce(record: Record) -> None:
    """Note that this process, which is the init's parent, stays as its monitor.

    Raises:
        OSError
    """
    me = ProcessId.of(os.getpid())
    if me is not None:
        text = json.dumps([me.pid, me.start_time, me.boot_id])
        (record.directory / MONITOR_FILE).write_text(text, encoding="ascii")


def monitor(record: Record) -> ProcessId | None:
    """The monitor of a sandbox, alive or not; None where it has none."""
    try:
        pid, start, boot = json.loads((record.directory / MONITOR_FILE).read_text(encoding="ascii"))
        return ProcessId(int(pid), int(start), str(boot))
    except (OSError, ValueError, TypeError):
        return None


def code(record: Record) -> int | None:
    """The exit code of a sandbox that has ended, as its monitor wrote it; None where it is not known.

    A monitor that is just about to write it is waited for.
    """
    found = _written(record)
    if found is not None:
        return found
    keeper = local_warm.running() if record.spec.warm else monitor(record)
    if keeper is None or keeper.pid == os.getpid():
        return None
    deadline = time.monotonic() + _PATIENCE
    while keeper.alive() and time.monotonic() < deadline:
        time.sleep(_LOOK)
        if (found := _written(record)) is not None:
            return found
    return _written(record)


def _written(record: Record) -> int | None:
    try:
        return int((record.directory / EXIT_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _watches(pid: int, ident: str) -> bool:
    """Whether a process was started to watch this sandbox: a file may name any process of the host."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return bool({ident.encode(), f"sbx-{ident}".encode()} & set(arguments))


def dismiss(record: Record) -> None:
    """End the monitor of a sandbox that is being removed, unless it is this very process.

    One that has not come to its exec yet is left alone: it ends when it finds that it has nothing to wait for.

    Raises:
        TimeoutError: it does not die.
    """
    keeper = monitor(record)
    if keeper is None or keeper.pid == os.getpid():
        return
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(keeper.pid)
        try:
            if keeper.alive() and _watches(keeper.pid, record.id):  # that very one, and the descriptor is of no other
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                if not poller.poll(_PATIENCE * 1000):
                    raise TimeoutError(f"the monitor {keeper.pid} of {record.name} does not die")
        finally:
            os.close(pidfd)
