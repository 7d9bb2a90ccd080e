"""The zygote: an interpreter that has the reference servers loaded, and forks a child for each warm start.

It is the root filesystem's own interpreter. Each request creates one child, which confines itself by the same steps as
one that is started cold (`enter`), but then calls the server instead of execve(2). One child is cloned ahead of time
and waits (`spare`). Children share what a fork shares: the layout of the address space, the seed of Python's hashes,
and copy-on-write memory of everything loaded before the first request. They share nothing that a sibling has done,
because a child's writes do not reach the parent's memory.

The zygote itself never runs a request's code, and has no threads and no locks. Sources: fork(2), clone(2), unix(7),
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
"""Descriptors that it inherits: its listening socket, and the host's mount namespace, to which it returns."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
"""Signals that a child's init forwards to the server, as tini(1) does."""
PING = b"?"
"""A request that is only answered, to check that the zygote works."""
_FDS = 5
_NAME_BYTES = 15
_IDLE_MS = 100
"""Milliseconds without a request until the next child is cloned ahead; earlier it would slow the last one's start."""


def pack(plan: Plan, program: bytes) -> bytes:
    """Return a request: the plan of a child without bind mounts, and its seccomp filter.

    Five descriptors are sent with it: the child's ends of the pipes `control` and `report`, its stdout and stderr, and
    a pipe to which its exit code is written, in decimal digits.
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
    """Return to the host's mount namespace and answer requests until SIGTERM.

    Args:
        serve: runs a server with its arguments and returns its exit code; all its modules have been imported.
    """
    search_path = sys.path[:]
    # The host's files are visible now, and may contain another interpreter's library: nothing may be imported there.
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
            with suppress(OSError):  # resources are short; the next request will report it
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
    """Start a child, the one that waits if it is alive, and return its pid."""
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
    """The running children by pidfd. The zygote is their parent, so only it can wait for them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}

    def add(self, pid: int, status: int) -> int:
        """Add a child and return its pidfd, which becomes readable when the child ends."""
        descriptor = os.pidfd_open(pid)
        self._known[descriptor] = (pid, status)
        return descriptor

    def ended(self, descriptor: int) -> None:
        """Reap a child and write its exit code to its status pipe."""
        pid, status = self._known.pop(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # its keeper has ended: nobody reads the pipe
            os.write(status, str(code if code >= 0 else 128 - code).encode())
        os.close(status)


def _become(plan: Plan, serve: Callable[[list[str]], int]) -> NoReturn:
    """In the child, once it is confined: fork the server, and act as its init, like tini(1)."""
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
    """Run as process 1: forward signals, reap orphans, and exit with the server's exit code."""

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
