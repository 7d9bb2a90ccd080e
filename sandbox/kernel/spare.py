"""A child in fresh namespaces that is made before anybody asks for it, and waits for what it is to become.

Cloning takes a third of a warm start: page tables are copied, and a network namespace is set up. None of that depends
on the request. The mount namespace alone is made when the request comes: one that waited in it would hold on to every
file system of the host, mounted or not by then (mount_namespaces(7)).

Each serves once. When its maker dies, it reads the end of its socket and exits; once it has been taken, it goes on.
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
"""What the child does with a request and its descriptors."""


class Spare:
    """A child that waits; `give` it a request, or `close` it to let it end.

    Attributes:
        pid: as its maker sees it, who is its parent.
    """

    def __init__(self, become: Become) -> None:
        """Make one.

        Args:
            become: called in the child, with a mount namespace of its own; never returns.

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
        """Let it begin; from here on it is on its own.

        Raises:
            OSError: EPIPE or ECONNRESET, it is dead.
        """
        with self._socket:
            socket.send_fds(self._socket, [data], descriptors)

    def close(self) -> None:
        """End it and reap it; one that has died already is fine."""
        self._socket.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _wait(descriptor: int, become: Become) -> NoReturn:
    """In the child: hold nothing but the socket until the request comes, or the end."""
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
