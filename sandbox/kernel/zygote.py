"""An interpreter prepared ahead, which forks into fresh namespaces: what a warm start starts from.

It is the root filesystem's own interpreter, with the reference servers loaded. Each request makes one child, which
goes the same way behind the same walls as one that is started cold (`enter`), save that at its end it calls the server
in place of execve(2). One child is cloned ahead and waits (`spare`). So a child shares with its siblings what a fork
shares: the layout of its address space, the seed of its hashes, and read-only copies of everything that was loaded
before the first request; nothing that a sibling has done, for children never write to the parent's memory.

The zygote itself never runs a request's code, holds no lock and no thread. Sources: fork(2), clone(2), unix(7),
pidfd_open(2), environ(7).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from sandbox.kernel import enter, rootfs, syscalls
from sandbox.kernel.enter import Plan
from sandbox.kernel.spare import MAX_REQUEST, Become, Spare

LISTENER_FD, HOST_MOUNTS_FD = 3, 4
"""Descriptors that it starts with: its socket, and the host's mount namespace to go back to."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
"""Signals that a child's init passes on to the server, as tini(1) does."""
PING = b"?"
"""A request to say that it is there."""
_FDS = 5
_NAME_BYTES = 15
_IDLE_MS = 100
"""Milliseconds without a request until the next child is made ahead: it would only be in the way of one that starts."""


def pack(plan: Plan, program: bytes) -> bytes:
    """A request: the plan of a child without bind mounts, and its filter.

    With it go five descriptors: the child's ends of the pipes `control` and `report`, its stdout and stderr, and a pipe
    that its exit code is written to, in decimal digits.
    """
    fields: dict[str, Any] = {
        "argv": plan.argv,
        "env": plan.env,
        "uid": plan.uid,
        "root": plan.root,
        "cgroup_files": plan.cgroup_files,
        "hostname": plan.hostname,
        "tmpfs": plan.layout.tmpfs,
        "workdir": plan.workdir,
        "program": program.hex(),
    }
    return json.dumps(fields).encode()


def _unpack(data: bytes, outputs: tuple[int, int]) -> tuple[Plan, bytes]:
    raw = json.loads(data)
    plan = Plan(
        argv=tuple(raw["argv"]),
        env=tuple((name, value) for name, value in raw["env"]),
        uid=raw["uid"],
        root=raw["root"],
        outputs=outputs,
        cgroup_files=tuple(raw["cgroup_files"]),
        hostname=raw["hostname"],
        layout=rootfs.Layout(tuple((path, size, mode) for path, size, mode in raw["tmpfs"])),
        workdir=raw["workdir"],
    )
    return plan, bytes.fromhex(raw["program"])


def main(serve: Callable[[list[str]], int]) -> NoReturn:
    """Go back to the host's mounts and answer requests until the socket's other ends and SIGTERM say otherwise.

    Args:
        serve: takes the arguments of a server and returns its exit code; all that it needs has been imported.
    """
    search_path = sys.path[:]
    # Here the host's files are seen, where another interpreter's library may lie: nothing is imported from there.
    sys.path.clear()
    syscalls.setns(HOST_MOUNTS_FD, syscalls.CLONE_NEWNS)
    os.close(HOST_MOUNTS_FD)
    gc.collect()
    gc.freeze()  # so that no child's collector touches, and thereby copies, the pages of what is loaded
    listener = socket.socket(fileno=LISTENER_FD)
    children = _Children()
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))

    def become(data: bytes, descriptors: list[int]) -> NoReturn:
        control, report, out, err = descriptors
        plan, program = _unpack(data, (out, err))
        enter.run_child(plan, lambda: _enter(plan, program), (control, report), finish)

    def finish(plan: Plan) -> NoReturn:
        sys.path[:] = search_path
        _become(plan, serve)

    spare: Spare | None = Spare(become)
    while True:
        events = poller.poll(None if spare else _IDLE_MS)
        if not events:
            with suppress(OSError):  # the host has no room for it now; whoever asks is told
                spare = Spare(become)
        for descriptor, _ in events:
            if descriptor != listener.fileno():
                poller.unregister(descriptor)
                children.ended(descriptor)
                continue
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError):
                request, descriptors = _receive(connection)
                try:
                    if request == PING:
                        connection.sendall(PING)
                        continue
                    *its, status = descriptors
                    mine, spare = spare, None
                    pid = _give(mine, become, request, its)
                    poller.register(children.add(pid, os.dup(status)), select.POLLIN)
                    connection.sendall(str(pid).encode())
                finally:
                    for one in descriptors:
                        os.close(one)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    data, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, _FDS)
    return data, descriptors


def _give(spare: Spare | None, become: Become, data: bytes, descriptors: list[int]) -> int:
    """Let a child begin, the one made ahead if it lives; its pid."""
    if spare is not None:
        try:
            spare.give(data, descriptors)
        except OSError:
            spare.close()
        else:
            return spare.pid
    made = Spare(become)
    made.give(data, descriptors)
    return made.pid


def _enter(plan: Plan, program: bytes) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    enter.enter_namespaces(plan, program)


class _Children:
    """Those that live, by their pidfd: only their parent learns how they end."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}

    def add(self, pid: int, status: int) -> int:
        """Note a child; returns its pidfd, which can be read from once it has ended."""
        descriptor = os.pidfd_open(pid)
        self._known[descriptor] = (pid, status)
        return descriptor

    def ended(self, descriptor: int) -> None:
        """Reap a child and write its exit code where it was asked for."""
        pid, status = self._known.pop(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # its keeper is gone: nobody asks any more
            os.write(status, str(code if code >= 0 else 128 - code).encode())
        os.close(status)


def _become(plan: Plan, serve: Callable[[list[str]], int]) -> NoReturn:
    """In the child, behind its walls: be the init, and fork the server, as tini(1) would with a program."""
    syscalls.close_from(3)
    os.environ.clear()
    os.environ.update(dict(plan.env))
    server = os.fork()
    if server == 0:
        code = 1
        try:
            for number in FORWARDED:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = list(plan.argv)
            syscalls.set_name(plan.argv[0][:_NAME_BYTES])
            code = serve(list(plan.argv))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _init(server)


def _init(server: int) -> NoReturn:
    """Process 1: pass signals on, reap whatever is orphaned, and end as the server does."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(server, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == server:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
