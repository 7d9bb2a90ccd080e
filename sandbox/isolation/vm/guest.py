"""Run commands inside a guest over SSH.

paramiko is imported only when a command is run, since that takes 0.2 s and starting a sandbox does not need it.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EHOSTUNREACH
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import EngineError
from sandbox.isolation.base import ExecResult, WindowSize
from sandbox.isolation.relay import collect
from sandbox.isolation.vm.config import KEY_TYPE
from sandbox.isolation.vm.exec import LOOK_EVERY, Command

if TYPE_CHECKING:
    import paramiko

USER = "root"
PORT = 22
CONNECT_TIMEOUT = 30.0
"""Seconds for connection, handshake and login; an emulated guest on a busy host takes a few."""
TERMINAL_TYPE = "xterm"
LONGEST_COMMAND = 8000
"""In bytes. Dropbear accepts 9000 (MAX_CMD_LEN in its sysoptions.h); a longer command is sent in a file."""
SPOOL = "/run/sandbox-command-"
"""The beginning of that file's path in the guest; only root can access the directory."""
_ATTEMPT = 3.0
"""Seconds for one attempt to connect; between two attempts, the machine's state is checked."""
_RETRY_PAUSE = 0.02


class Guest:
    """An SSH connection to a guest, opened by the first command."""

    def __init__(self, address: str, host_public: str, client_key: Path, alive: Callable[[], bool]) -> None:
        """Store the guest's address and the keys of both sides.

        Args:
            address: in dotted-quad notation.
            host_public: the guest's host key, in base64.
            client_key: the file with the private key to log in with.
            alive: returns whether the machine runs.
        """
        self.address = address
        self.alive = alive
        self.host_public = host_public
        self.client_key = client_key
        self._client: paramiko.SSHClient | None = None

    def close(self) -> None:
        """Close the connection. Idempotent; the next command opens a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def run(self, command: str, timeout: float | None = None) -> ExecResult:
        """Run a command line in the guest's root shell, and wait for it.

        Raises:
            EngineError: the guest cannot be reached, has another host key, or ended meanwhile.
            TimeoutError: it took longer than `timeout` seconds; the command still runs.
        """
        started = self.start(command, None, lambda: None)
        started.close_write()
        return collect(started, [command], timeout)

    def start(self, command: str, terminal: WindowSize | None, kill: Callable[[], object]) -> Command:
        """Start a command line in the guest's root shell, with or without a terminal.

        Args:
            command: the command line.
            terminal: the terminal's size; None for no terminal.
            kill: kills the command and its children.

        Raises:
            EngineError: as for `run`.
        """
        return Command(self._started(command, terminal), self.alive, kill)

    def _started(self, command: str, terminal: WindowSize | None) -> paramiko.Channel:
        import paramiko

        line = os.fsencode(command)
        try:
            if len(line) > LONGEST_COMMAND:
                line = self._spool(line)
            channel = self._session()
            if terminal is not None:
                channel.get_pty(TERMINAL_TYPE, terminal.columns, terminal.rows)
            channel.exec_command(line)  # bytes: a name of a file need not be UTF-8
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise EngineError(f"the guest at {self.address} does not answer over SSH: {error}") from error
        return channel

    def _spool(self, line: bytes) -> bytes:
        """Write a long command line into a file of the guest, and return a short one that runs it."""
        path = f"{SPOOL}{os.urandom(6).hex()}"
        writing = self.start(f"umask 077 && cat >{path}", None, lambda: None)
        writing.write(b"rm " + path.encode() + b"; exec " + line + b"\n")
        writing.close_write()
        done = collect(writing, ["cat"], CONNECT_TIMEOUT)
        if done.exit_code != 0:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise EngineError(f"the command is too long for the guest: {said}")
        return f". {path}".encode()

    def _session(self) -> paramiko.Channel:
        """Open a channel, on a new connection if the old one is dead."""
        import paramiko

        if self._client is not None:
            transport = self._client.get_transport()
            if transport is not None and transport.is_active():
                try:
                    return transport.open_session(timeout=CONNECT_TIMEOUT)
                except paramiko.SSHException:
                    self.close()
        self._client = self._connect()
        transport = self._client.get_transport()
        if transport is None:
            raise EngineError(f"the guest at {self.address} closed the connection")
        return transport.open_session(timeout=CONNECT_TIMEOUT)

    def _connect(self) -> paramiko.SSHClient:
        import paramiko

        # Its threads would also log the errors that are raised here as exceptions.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        key = paramiko.Ed25519Key.from_private_key_file(str(self.client_key))
        host_key = paramiko.Ed25519Key(data=base64.b64decode(self.host_public))
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while True:
            if not self.alive():
                raise EOFError("the machine ended")
            client = paramiko.SSHClient()
            sock = None
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            client.get_host_keys().add(self.address, KEY_TYPE, host_key)
            try:
                sock = socket.create_connection((self.address, PORT), _ATTEMPT)
                sock.settimeout(CONNECT_TIMEOUT)
                # A machine that was switched off sends no reset; unacknowledged data then ends the connection.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(CONNECT_TIMEOUT * 1000))
                with self._shut_down_with_machine(sock):
                    client.connect(
                        self.address,
                        PORT,
                        USER,
                        sock=sock,
                        pkey=key,
                        allow_agent=False,
                        look_for_keys=False,
                        timeout=CONNECT_TIMEOUT,
                        banner_timeout=CONNECT_TIMEOUT,
                        auth_timeout=CONNECT_TIMEOUT,
                    )
                return client
            except BaseException as error:
                client.close()
                if sock is not None:
                    sock.close()
                if not _may_come(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_PAUSE)

    @contextmanager
    def _shut_down_with_machine(self, sock: socket.socket) -> Iterator[None]:
        """Shut a socket down if the machine ends within the block: the other side sends nothing then."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(LOOK_EVERY):
                if not self.alive():
                    with suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                    return

        watcher = threading.Thread(target=watch, name=f"machine at {self.address}", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _may_come(error: BaseException) -> bool:
    """Return whether the SSH server may still come up: it starts after the workload, in order not to delay it.

    A busy guest on a busy host may also be too slow for ARP, which gives up after three attempts.
    """
    return isinstance(error, ConnectionRefusedError | TimeoutError) or (
        isinstance(error, OSError) and error.errno == EHOSTUNREACH
    )
