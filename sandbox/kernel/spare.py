"""A child that is cloned into new namespaces ahead of time, and waits for a request.

Cloning takes a third of a warm start: page tables are copied, and a network namespace is set up. None of that depends
on the request. Only the mount namespace is created when the request arrives: a child that waited in one would keep
every file system of the host busy, even after its unmount (mount_namespaces(7)).

Each child serves one request. While it waits, the end of its parent closes its socket and it exits; with a request it
outlives the parent.
Sources: clone(2), unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from sandbox.kernel import enter, syscalls

MAX_REQUEST = 65536
"""Bytes."""
_SOCKET_FD = 3

Become = Callable[[bytes, list[int]], NoReturn]
"""Called in the child with a request and its descriptors."""


class Spare:
    """A waiting child: `give` it a request, or `close` it to end it.

    Attributes:
        pid: its pid in the parent's pid namespace.
    """

    def __init__(self, become: Become) -> None:
        """Clone the child.

        Args:
            become: called in the child, in a mount namespace of its own; never returns.

        Raises:
            OSError: it cannot be cloned.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                self.pid = enter.clone_bare(without=syscalls.CLONE_NEWNS)
            except BaseException:
                ours.close()
                raise
            if self.pid == 0:
                _wait(its.fileno(), become)
        self._socket = ours

    def give(self, data: bytes, descriptors: list[int]) -> None:
        """Send the request. From here on the child no longer depends on this process.

        Raises:
            OSError: EPIPE or ECONNRESET, the child is dead.
        """
        with self._socket:
            socket.send_fds(self._socket, [data], descriptors)

    def close(self) -> None:
        """End the child and reap it. Does nothing if it is dead already."""
        self._socket.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _wait(descriptor: int, become: Become) -> NoReturn:
    """Wait in the child, with no descriptor open but the socket, for a request or the parent's end."""
    try:
        os.dup2(descriptor, _SOCKET_FD, inheritable=False)
        syscalls.close_from(_SOCKET_FD + 1)
        waiting = socket.socket(fileno=_SOCKET_FD)
        data, descriptors, _, _ = socket.recv_fds(waiting, MAX_REQUEST, 8)
        if not data:
            os._exit(0)
        waiting.close()
        become(data, descriptors)
    finally:
        os._exit(127)
