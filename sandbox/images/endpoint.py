"""Which Docker daemon, and an HTTP connection to it.

The choice is that of docker's own command: DOCKER_CONTEXT, DOCKER_HOST, then the context of `docker context use`
(https://docs.docker.com/engine/manage-resources/contexts/).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sandbox.errors import UnavailableError

DEFAULT_HOST = "unix:///var/run/docker.sock"
_BLOCK = 1024 * 1024
"""Bytes read from an archive and sent at once; http.client's own 8 KiB would double the time of an import."""

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A daemon's address.

    Attributes:
        host: as in DOCKER_HOST.
        certificates: a directory with ca.pem, cert.pem and key.pem; None where TLS is not used.
    """

    host: str
    certificates: Path | None = None

    @classmethod
    def current(cls) -> Endpoint:
        """The daemon that docker's own command would use now.

        Raises:
            UnavailableError: the context chosen is not there or cannot be read.
        """
        name = os.environ.get("DOCKER_CONTEXT")
        host = os.environ.get("DOCKER_HOST")
        folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
        if not name and not host:
            name = _current_context(folder)
        if name and name != "default":
            return _context(folder, name)
        # DOCKER_TLS_VERIFY counts when it is not empty, whatever it says (docker(1)).
        verified = bool(os.environ.get("DOCKER_TLS_VERIFY"))
        certificates = Path(os.environ.get("DOCKER_CERT_PATH") or folder) if verified else None
        return cls(host or DEFAULT_HOST, certificates)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is opened by its first request.

        Args:
            timeout: seconds for each wait on the daemon.

        Raises:
            UnavailableError: the address is not one that can be used.
        """
        scheme, _, rest = self.host.partition("://")
        if scheme == "unix" and rest:
            return _UnixConnection(rest, timeout)
        where = urlsplit(f"//{rest}")
        if scheme == "ssh" and where.hostname and not where.hostname.startswith("-"):
            return _SshConnection(self.host, timeout)
        if scheme in ("tcp", "http", "https") and where.hostname:
            if self.certificates is None and scheme != "https":
                return http.client.HTTPConnection(where.hostname, where.port or 2375, timeout=timeout, blocksize=_BLOCK)
            return http.client.HTTPSConnection(
                where.hostname, where.port or 2376, timeout=timeout, context=self._tls(), blocksize=_BLOCK
            )
        raise UnavailableError(f"docker's address {self.host!r} cannot be used", "unix://PATH, tcp:// or ssh://HOST")

    def _tls(self) -> ssl.SSLContext:
        if self.certificates is None:
            return ssl.create_default_context()
        # The names of docker's own client (https://docs.docker.com/engine/security/protect-access/).
        try:
            context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
            if (self.certificates / "cert.pem").exists():
                context.load_cert_chain(self.certificates / "cert.pem", self.certificates / "key.pem")
        except OSError as error:
            raise UnavailableError(f"docker's certificates in {self.certificates} cannot be used: {error}") from error
        return context


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout, blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _SshConnection(http.client.HTTPConnection):
    """HTTP to a remote daemon through ssh(1), by the command that docker's own client runs at the other end."""

    def __init__(self, host: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout, blocksize=_BLOCK)
        self._destination = host
        self._ssh: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(self.timeout)
        with theirs:
            self._ssh = subprocess.Popen(
                [*SSH, "--", self._destination, "docker", "system", "dial-stdio"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
            )

    def close(self) -> None:
        super().close()
        if self._ssh is not None:
            self._ssh.terminate()
            self._ssh.wait()
            self._ssh = None


def _current_context(folder: Path) -> str | None:
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("currentContext")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UnavailableError(f"{folder / 'config.json'} cannot be read: {error}", "mend or remove it") from error
    return str(name) if name else None


def _context(folder: Path, name: str) -> Endpoint:
    # docker names the directory of a context by the SHA-256 of its name.
    identity = hashlib.sha256(name.encode()).hexdigest()
    path = folder / "contexts/meta" / identity / "meta.json"
    try:
        host = str(json.loads(path.read_text(encoding="utf-8"))["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"docker's context {name!r} cannot be read", "docker context ls") from error
    certificates = folder / "contexts/tls" / identity / "docker"
    return Endpoint(host or DEFAULT_HOST, certificates if certificates.is_dir() else None)
