"""The guest as the host sees it: its configuration, its keys, and commands over SSH.

The keys of both sides are made on the host before the guest exists, so that the very first connection is verified.
This module alone imports paramiko, and only when something is to be asked: it takes 0.2 s, and starting a sandbox
does not need it.
"""

from __future__ import annotations

import base64
import os
import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import EngineError

if TYPE_CHECKING:
    import paramiko

USER = "root"
PORT = 22
KEY_TYPE = "ssh-ed25519"
CONNECT_TIMEOUT = 30.0
"""Seconds for connection, handshake and login; an emulated guest on a busy host takes a few."""
_RETRY_PAUSE = 0.02
_POLL = 0.004


@dataclass(frozen=True, slots=True)
class Keys:
    """The two key pairs of one machine.

    Attributes:
        host_private: the guest's host key in dropbear's own format.
        host_public: its public part, as in an SSH known_hosts file: base64.
        client_private: what the host logs in with, in OpenSSH's format.
        client_public: its public part, base64.
    """

    host_private: bytes
    host_public: str
    client_private: bytes
    client_public: str


def make_keys() -> Keys:
    """Two fresh Ed25519 pairs (RFC 8709)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    host, client = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    host_public, client_public = host.public_key().public_bytes(*raw), client.public_key().public_bytes(*raw)
    # Dropbear keeps the seed and the public key as one string after the name of the type.
    secret = host.private_bytes_raw() + host_public
    return Keys(
        host_private=_string(KEY_TYPE.encode()) + _string(secret),
        host_public=_public_text(host_public),
        client_private=client.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
        client_public=_public_text(client_public),
    )


def _string(data: bytes) -> bytes:
    """A string of the SSH wire format (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data


def _public_text(key: bytes) -> str:
    return base64.b64encode(_string(KEY_TYPE.encode()) + _string(key)).decode("ascii")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one guest is told; the scripts in vm/guest/ read it.

    Attributes:
        nonce: marks the words of the guest's init on the console.
        hostname, address, netmask: of the guest.
        pids: the most processes and threads of the workload.
        uid: user and group id of the workload.
        environment: the workload's, all of it.
        init: process 1 of the workload, which `argv` is given to.
        argv: the workload.
        tmpfs: directories that are writable, each of `tmpfs_bytes` bytes; directory to mode.
    """

    nonce: str
    hostname: str
    address: str
    netmask: str
    pids: int
    uid: int
    environment: Mapping[str, str]
    init: Sequence[str]
    argv: Sequence[str]
    tmpfs: Mapping[str, int]
    tmpfs_bytes: int

    def settings(self) -> bytes:
        """Assignments and two functions for the guest's shell, every value quoted for it (POSIX, shell quoting).

        Bytes, for an argument or a value may be any bytes but NUL, and comes as surrogate escapes.
        """
        values = {
            "nonce": self.nonce,
            "hostname": self.hostname,
            "address": self.address,
            "netmask": self.netmask,
            "pids": str(self.pids),
            "uid": str(self.uid),
            "search_path": self.environment.get("PATH", ""),
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
        entries = shlex.join(f"{name}={value}" for name, value in self.environment.items())
        lines.append(f'with_environment() {{ exec env -i {entries} "$@"; }}')
        lines.append(f'workload() {{ "$@" {shlex.join([*self.init, *self.argv])}; }}')
        return os.fsencode("\n".join(lines) + "\n")

    def fstab(self) -> bytes:
        """What the guest mounts on its root filesystem, in the format of fstab(5), parents first."""
        plain = "nosuid,nodev,noexec"
        lines = [f"sysfs /sys sysfs {plain} 0 0", f"cgroup2 /sys/fs/cgroup cgroup2 {plain} 0 0"]
        for path, mode in self.tmpfs.items():
            lines.append(f"tmpfs {path} tmpfs nosuid,nodev,mode={mode:o},size={self.tmpfs_bytes} 0 0")
        lines.append(f"tmpfs /dev/shm tmpfs {plain},mode=1777,size={self.tmpfs_bytes} 0 0")
        lines.append("devpts /dev/pts devpts nosuid,noexec,mode=0620,ptmxmode=0666 0 0")
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    def files(self, keys: Keys) -> dict[str, bytes]:
        """The files that the guest finds; name to content."""
        return {
            "settings": self.settings(),
            "fstab": self.fstab(),
            "host_key": keys.host_private,
            "authorized_keys": f"{KEY_TYPE} {keys.client_public}\n".encode("ascii"),
        }


class Guest:
    """Commands inside a guest, over one SSH connection that is opened by the first of them."""

    def __init__(self, address: str, host_public: str, client_key: Path) -> None:
        self.address = address
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
        import paramiko

        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            channel = self._session()
            with channel:
                channel.exec_command(command)
                return _collect(channel, deadline)
        except TimeoutError:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise EngineError(f"the guest at {self.address} does not answer over SSH: {error}") from error

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

        key = paramiko.Ed25519Key.from_private_key_file(str(self.client_key))
        host_key = paramiko.Ed25519Key(data=base64.b64decode(self.host_public))
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while True:
            client = paramiko.SSHClient()
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            client.get_host_keys().add(self.address, KEY_TYPE, host_key)
            try:
                client.connect(
                    self.address,
                    PORT,
                    USER,
                    pkey=key,
                    allow_agent=False,
                    look_for_keys=False,
                    timeout=CONNECT_TIMEOUT,
                    banner_timeout=CONNECT_TIMEOUT,
                    auth_timeout=CONNECT_TIMEOUT,
                )
                return client
            except (ConnectionRefusedError, paramiko.ssh_exception.NoValidConnectionsError):
                client.close()
                # Its server starts after the workload, so that it does not delay it.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_PAUSE)
            except BaseException:
                client.close()
                raise


def _collect(channel: paramiko.Channel, deadline: float | None) -> tuple[int, bytes, bytes]:
    out, err = bytearray(), bytearray()
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
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(_POLL)
    code = channel.recv_exit_status()
    if code < 0:
        raise EOFError("the command ended without an exit code")
    return code, bytes(out), bytes(err)
