"""The configuration that is built into one guest: its settings, its mounts, and the SSH keys of both sides.

The keys are generated on the host, so that even the first connection is verified.
"""

from __future__ import annotations

import base64
import os
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox.errors import SpecError

KEY_TYPE = "ssh-ed25519"


@dataclass(frozen=True, slots=True)
class Keys:
    """The two key pairs of one machine.

    Attributes:
        host_private: the guest's host key in dropbear's own format.
        host_public: its public part, as in an SSH known_hosts file: base64.
        client_private: the key that the host logs in with, in OpenSSH's format.
        client_public: its public part, base64.
    """

    host_private: bytes
    host_public: str
    client_private: bytes
    client_public: str


def make_keys() -> Keys:
    """Generate two new Ed25519 key pairs (RFC 8709)."""
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
    """Encode a string in the SSH wire format (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data


def _public_text(key: bytes) -> str:
    return base64.b64encode(_string(KEY_TYPE.encode()) + _string(key)).decode("ascii")


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of one guest, read by the scripts in vm/guest/.

    Attributes:
        nonce: marks messages of the guest's init on the console.
        hostname, address, netmask: of the guest.
        pids: the limit on processes and threads of the workload.
        uid: user and group id of the workload.
        environment: the workload's complete environment.
        init: the command that runs `argv`, and reaps orphans.
        argv: the workload.
        directory: the workload's working directory, an absolute path.
        tmpfs: the writable directories: path, bytes, mode.
        shm_bytes: size of /dev/shm.
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
    directory: str
    tmpfs: Sequence[tuple[str, int, int]]
    shm_bytes: int

    def settings(self) -> bytes:
        """Return assignments and two functions for the guest's shell, with every value quoted (POSIX, shell quoting).

        The result is bytes, because arguments and values may be any bytes but NUL, given as surrogate escapes.

        Raises:
            SpecError: one of them contains NUL, which is impossible in an argument or variable (execve(2)).
        """
        values = {
            "nonce": self.nonce,
            "hostname": self.hostname,
            "address": self.address,
            "netmask": self.netmask,
            "pids": str(self.pids),
            "uid": str(self.uid),
            "directory": self.directory,
            "command": self.argv[0],
            "search_path": self.environment.get("PATH", ""),
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
        entries = shlex.join(f"{name}={value}" for name, value in self.environment.items())
        lines.append(f'with_environment() {{ exec env -i -- {entries} "$@"; }}')
        lines.append(f'workload() {{ "$@" {shlex.join([*self.init, *self.argv])}; }}')
        text = "\n".join(lines) + "\n"
        if "\0" in text:
            raise SpecError("the command or its environment contains a NUL byte", "use text without NUL")
        return os.fsencode(text)

    def fstab(self) -> bytes:
        """Return the guest's mounts in the format of fstab(5), parents first."""
        plain = "nosuid,nodev,noexec"
        lines = [f"sysfs /sys sysfs {plain} 0 0", f"cgroup2 /sys/fs/cgroup cgroup2 {plain} 0 0"]
        for path, size, mode in self.tmpfs:
            lines.append(f"tmpfs {path} tmpfs nosuid,nodev,mode={mode:o},size={size} 0 0")
        lines.append(f"tmpfs /dev/shm tmpfs {plain},mode=1777,size={self.shm_bytes} 0 0")
        lines.append("devpts /dev/pts devpts nosuid,noexec,mode=0620,ptmxmode=0666 0 0")
        return "".join(f"{line}\n" for line in lines).encode("ascii")

    def files(self, keys: Keys) -> dict[str, bytes]:
        """Return the configuration files for the guest, by name."""
        return {
            "settings": self.settings(),
            "fstab": self.fstab(),
            "host_key": keys.host_private,
            "authorized_keys": f"{KEY_TYPE} {keys.client_public}\n".encode("ascii"),
        }
