"""Commands inside a guest, over SSH.

This module alone imports paramiko, and only when something is to be asked: it takes 0.2 s, and starting a sandbox
does not need it.
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
from sandbox.isolation.base import WindowSize
from sandbox.isolation.vm.config import KEY_TYPE

if TYPE_CHECKING:
    import paramiko

USER = "root"
PORT = 22
CONNECT_TIMEOUT = 30.0
"""Seconds for connection, handshake and login; an emulated guest on a busy host takes a few."""
LOOK_EVERY = 0.5
"""Seconds between looks whether the machine lives: a connection to one that was switched off never says so."""
TERMINAL_TYPE = "xterm"
LONGEST_COMMAND = 8000
"""Bytes. Dropbear takes 9000 (MAX_CMD_LEN in its sysoptions.h); what is longer goes by way of a file."""
SPOOL = "/run/sandbox-command-"
"""Begins the name of that file in the guest, in a directory that is root's alone."""
_ATTEMPT = 3.0
"""Seconds for one try to connect; between two the machine is looked at."""
_RETRY_PAUSE = 0.02
_POLL = 0.004


class Running:
    """A command over a channel of its own, until `close`. What the connection can fail by, it ends by."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        channel.settimeout(LOOK_EVERY)

    def read_out(self, size: int) -> bytes:
        """Up to so many bytes of its output; none at the end.

        Raises:
            TimeoutError: none came for LOOK_EVERY seconds.
        """
        return self._channel.recv(size)

    def read_err(self, size: int) -> bytes:
        """The same of its errors."""
        return self._channel.recv_stderr(size)

    def send(self, data: bytes) -> int:
        """Write to its input what it takes now, and return how many bytes; 0 when it has ended.

        Raises:
            TimeoutError: it took none for LOOK_EVERY seconds.
        """
        try:
            return self._channel.send(data)
        except TimeoutError:
            raise
        except (OSError, EOFError):
            return 0

    def close_input(self) -> None:
        """End its input."""
        with suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def resize(self, size: WindowSize) -> None:
        """Tell its terminal a new size; nothing happens once it has ended."""
        import paramiko

        with suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.resize_pty(width=size.columns, height=size.rows)

    def ended(self) -> bool:
        """Whether its exit code is there, or the channel is gone."""
        return self._channel.exit_status_ready() or self._channel.closed

    def exit_code(self, alive: Callable[[], bool]) -> int | None:
        """Wait for its exit code, 128+n for a signal; None when the machine or the connection went first."""
        while not self._channel.status_event.wait(LOOK_EVERY):
            if not alive():
                return None
        code = int(self._channel.exit_status)
        return code if code >= 0 else None

    def close(self) -> None:
        """Give the channel up; the command goes on if it has not ended. Idempotent."""
        with suppress(OSError, EOFError):
            self._channel.close()


class Guest:
    """Commands inside a guest, over one SSH connection that is opened by the first of them."""

    def __init__(self, address: str, host_public: str, client_key: Path, alive: Callable[[], bool]) -> None:
        """Where it is, and how each side knows the other.

        Args:
            address: dotted quad.
            host_public: the guest's host key, base64.
            client_key: the file of the key that it lets in.
            alive: whether the machine runs.
        """
        self.address = address
        self.alive = alive
        self.host_public = host_public
        self.client_key = client_key
        self._client: paramiko.SSHClient | None = None

    def close(self) -> None:
        """End the connection. Idempotent; the next command opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def run(self, command: str, timeout: float | None = None) -> tuple[int, bytes, bytes]:
        """Run a command line of the guest's root shell.

        Returns:
            Exit code (128+n for a signal), stdout, stderr.

        Raises:
            EngineError: the guest cannot be reached, is not who it should be, or went away meanwhile.
            TimeoutError: it took longer than `timeout` seconds; the command still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        channel = self._started(command, None)
        try:
            with channel:
                return _collect(channel, deadline, self.alive)
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            self.close()
            raise EngineError(f"the guest at {self.address} went away: {error}") from error

    def start(self, command: str, terminal: WindowSize | None) -> Running:
        """Start a command line of the guest's root shell, on a terminal of its own or without.

        Raises:
            EngineError: as of `run`.
        """
        return Running(self._started(command, terminal))

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
        with self._session() as channel:
            channel.exec_command(f"umask 077 && cat >{path}")
            channel.sendall(b"rm " + path.encode() + b"; exec " + line + b"\n")
            channel.shutdown_write()
            code, _, err = _collect(channel, time.monotonic() + CONNECT_TIMEOUT, self.alive)
        if code != 0:
            raise EngineError(f"the command is too long for the guest: {err.decode('utf-8', 'replace').strip()}")
        return f". {path}".encode()

    def _session(self) -> paramiko.Channel:
        """A channel on the connection, on a new one if the old one died."""
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

        # Its threads would print what we are told of by an exception anyway.
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
                # A machine that is switched off sends nothing any more: what it has not acknowledged ends it all.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(CONNECT_TIMEOUT * 1000))
                with self._given_up_with_the_machine(sock):
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
    def _given_up_with_the_machine(self, sock: socket.socket) -> Iterator[None]:
        """End what waits on a socket when the machine ends, which then says nothing any more."""
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
    """Whether the SSH server may only be late: it starts after the workload, so that it does not delay it.

    A guest that is kept busy, on a busy host, may also be too slow for ARP, which gives up after three tries.
    """
    return isinstance(error, ConnectionRefusedError | TimeoutError) or (
        isinstance(error, OSError) and error.errno == EHOSTUNREACH
    )


def _collect(channel: paramiko.Channel, deadline: float | None, alive: Callable[[], bool]) -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
    look_at = time.monotonic() + LOOK_EVERY
    while True:
        # Asked before the reads: what came last is then still read.
        ended = channel.exit_status_ready() and (channel.eof_received or channel.closed)
        while channel.recv_ready():
            out += channel.recv(65536)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(65536)
        if ended:
            break
        if channel.closed and not channel.exit_status_ready():
            raise EOFError("the connection was lost")
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimeoutError
        if now >= look_at:
            look_at = now + LOOK_EVERY
            if not alive():
                raise EOFError("the machine ended")
        time.sleep(_POLL)
    code = channel.recv_exit_status()
    if code < 0:
        raise EOFError("the command ended without an exit code")
    return code, bytes(out), bytes(err)
