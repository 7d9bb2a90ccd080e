"""`run -d` where the kernel alone carries the sandbox: the command splits in two, and one half stays as its monitor.

Only the parent of a sandbox's init learns its exit code. So the half that makes the sandbox is a child of the command,
and becomes `sandbox.lifecycle.keeper` by exec, which keeps its children. The other half, the front, is what the shell
waits for: it prints what the child says once the sandbox serves, and passes on what ends it before.

Until then the child is in the front's process group, so that a Ctrl-C reaches both, and gets SIGTERM when the front
dies (PR_SET_PDEATHSIG, prctl(2)): in each case it undoes what it has made.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import click

from sandbox.errors import EngineError, SandboxError

if TYPE_CHECKING:
    from sandbox.lifecycle.find import Running

Start = Callable[[Callable[["Running"], object]], "Running"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEPT = ("PATH", "HOME", "LANG")


def run(start: Start, say: Callable[[Running], str], *, remove: bool) -> int:
    """Start a sandbox in the background and print its id; returns once it serves.

    Args:
        start: makes it, in the child, and calls what it is given as of `lifecycle.start`'s `then`; what it raises is
            shown by the child, and its exit code is the command's.
        say: how it can be reached, for people.
        remove: whether the monitor removes it when the workload ends by itself.

    Raises:
        SandboxError: the child died.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    front = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _die_with(front)
        _become_monitor(start, say, writing, remove=remove)
    os.close(writing)
    said = bytearray()
    try:
        _read_all(reading, said)
    except BaseException:
        _take_back(child, reading, said)
        raise
    if not said:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            raise EngineError(f"the command's other half was ended by {signal.Signals(-code).name}", "sandbox prune")
        return code
    answer = json.loads(said)
    click.echo(answer["id"])
    click.echo(answer["said"], err=True)
    return 0


def _read_all(descriptor: int, said: bytearray) -> None:
    """Append what comes to `said`, until the other end is closed. A signal ends the waiting, and loses no byte."""
    from sandbox.interrupts import deferred, wait_readable

    while True:
        wait_readable(descriptor)
        with deferred():
            chunk = os.read(descriptor, 4096)
            said += chunk
        if not chunk:
            return


def _take_back(child: int, reading: int, said: bytearray) -> None:
    """The front was told to stop: end the child, or remove what it has just finished."""
    from sandbox.lifecycle.remove import remove

    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    _read_all(reading, said)
    if said:
        with suppress(SandboxError):  # the command ends by the signal anyway; `sandbox prune` finds what is left
            remove(json.loads(said)["id"], force=True)
    else:
        os.waitpid(child, 0)


def _die_with(front: int) -> None:
    from sandbox.kernel import syscalls

    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != front:  # it died before this
        os.kill(os.getpid(), signal.SIGTERM)


def _become_monitor(start: Start, say: Callable[[Running], str], writing: int, *, remove: bool) -> NoReturn:
    from sandbox.isolation.local import exit
    from sandbox.kernel import syscalls
    from sandbox.lifecycle import keeper

    argv: list[str] = []

    def hand_over(running: Running) -> None:
        record = running.record
        exit.announce(record)
        then = keeper.REMOVE if remove else keeper.TELL if record.spec.publish else keeper.KEEP
        code_file = str(record.directory / exit.EXIT_FILE)
        argv[:] = keeper.command(record.id, record.process.pid if record.process else 0, code_file, then)
        answer = {"id": record.id, "said": f"{record.name} {say(running)}"}
        os.setsid()
        os.chdir("/")
        # What comes until here undoes it. From here on the sandbox is there, and nobody but its end ends this.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
        os.write(writing, json.dumps(answer).encode())

    start(hand_over)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith("SANDBOX_")}
    syscalls.close_from_at_exec(3)
    os.execve(argv[0], argv, kept)  # noqa: S606 - no shell is the point
