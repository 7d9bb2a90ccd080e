"""The Docker client: find the dockerd to use, connect to it, and translate its errors.

Calls use the Docker SDK, which is loaded at the first one (`Engine.talking`). Loading it takes 0.12 s, while a whole
`docker exec` takes 0.07 s. So `exec`, `ps` and the doctor send their requests over the same socket by http.client
(`Engine.ask`, `Engine.look`). So do streams (`Engine.upgrade`), as the SDK loses their first bytes. Paths there have no
version, which selects the engine's own. The API is described at https://docs.docker.com/reference/api/engine/.

The engine must be local; one on another host is refused.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sandbox.errors import EngineError, SandboxError, UnavailableError

if TYPE_CHECKING:
    import http.client

    from docker import APIClient as APIClient  # re-exported for the neighbouring modules

DEFAULT_SOCKET = "/var/run/docker.sock"
TIMEOUT = 60.0
"""Seconds that a call may take, unless it is one that waits."""

_PING_TIMEOUT = 10.0
"""Seconds in which a working engine answers a ping."""

_SSH_TRANSPORT = "docker.transport.sshconn"
_NOT_FOUND = 404
_ERRORS = 400
_UPGRADED = b"HTTP/1.1 101"
_HEADERS_END = b"\r\n\r\n"
_MAX_REASON = 300
"""Maximum characters of the engine's message that are shown."""


class RefusalError(EngineError):
    """The engine refused a call.

    Attributes:
        status: status of the HTTP response (see the Docker Engine API), such as 404 not found, 409 conflict.
        reason: the engine's message, one line.
    """

    def __init__(self, what: str, status: int, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.status = status
        self.reason = reason


class NoAnswerError(EngineError):
    """The engine accepted a call and did not answer in time."""


def socket_path() -> str:
    """Return the socket of the dockerd that the docker command would use.

    This is DOCKER_HOST, else the context of DOCKER_CONTEXT or of `docker context use`, else the default.

    Raises:
        UnavailableError: it has no local socket, or Docker's configuration cannot be read.
    """
    host, name = os.environ.get("DOCKER_HOST"), os.environ.get("DOCKER_CONTEXT")
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if not host:
        name = name or _current_context(folder)
        host = _context(folder, name) if name and name != "default" else f"unix://{DEFAULT_SOCKET}"
    scheme, _, path = host.partition("://")
    if scheme != "unix" or not path.startswith("/"):
        raise UnavailableError(
            f"dockerd at {host} cannot be used: it must be on this host, at a Unix socket",
            "unset DOCKER_HOST and DOCKER_CONTEXT, or docker context use default",
        )
    return path


def _current_context(folder: Path) -> str | None:
    path = folder / "config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("currentContext")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UnavailableError(f"{path} cannot be read: {error}", "repair or remove it") from error
    return str(name) if name else None


def _context(folder: Path, name: str) -> str:
    """Return the address of a context. Docker names its directory by the SHA-256 of its name."""
    import hashlib  # imported here because it loads OpenSSL

    path = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"docker's context {name!r} cannot be read", "docker context ls") from error


class Version(NamedTuple):
    """The versions of a dockerd and of its API."""

    docker: str
    api: str


class Engine:
    """A client of one dockerd, which connects when first needed.

    Attributes:
        socket: the path of its socket.
    """

    def __init__(self, path: str | None = None) -> None:
        """Choose the engine at a socket's path, by default the one that the docker command would use.

        Raises:
            UnavailableError: as `socket_path`.
        """
        self.socket = path or socket_path()
        self._api: APIClient | None = None
        self._version: Version | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket}"

    def version(self) -> Version:
        """Return the versions, from a ping, which takes 1 ms; /version takes 16 ms.

        Raises:
            EngineError, UnavailableError: as `ask`.
        """
        if self._version is None:
            with closing(self._connect(_PING_TIMEOUT)) as connection:
                answer = self._answer(connection, "GET", "/_ping", f"{self} does not answer a ping")
            docker = (answer.getheader("Server") or "").removeprefix("Docker/").partition(" ")[0]
            self._version = Version(docker or "of unknown version", answer.getheader("Api-Version") or "1.41")
        return self._version

    @contextmanager
    def talking(self, what: str) -> Iterator[APIClient]:
        """Return the SDK's low-level client for a block, and translate its errors.

        Args:
            what: description of the failure, such as "the container could not be created".

        Raises:
            RefusalError: the engine refused.
            UnavailableError: the engine cannot be reached.
            NoAnswerError: the engine did not answer in time.
            EngineError: the answer is malformed.
        """
        try:
            if self._api is None:
                # Newer engines refuse old API versions, and the body of a create call depends on the version.
                self._api = _sdk(str(self), self.version().api)
                # Close its idle connections now, and not at a garbage collection.
                weakref.finalize(self, self._api.close)
            yield self._api
        except SandboxError:
            raise
        except Exception as error:
            explained = self._explain(error, what)
            if explained is None:
                raise
            raise explained from error

    def ask(self, method: str, path: str, what: str, body: Any = None) -> Any:
        """Make a small call without the SDK. Returns the JSON of the response, or None if it is empty.

        Args:
            method: the HTTP method.
            path: the path in the API, without a version.
            what: description of the failure, as for `talking`.
            body: the request's body, of JSON types.

        Raises:
            RefusalError, UnavailableError, NoAnswerError, EngineError: as `talking`.
        """
        with closing(self._connect(TIMEOUT)) as connection:
            answer = self._answer(connection, method, path, what, body)
            try:
                text = answer.read()
                return json.loads(text) if text else None
            except ValueError as error:
                raise EngineError(f"{what}: dockerd's answer is not JSON") from error
            except Exception as error:
                raise self._broken(error, what) from error

    def look(self, path: str, what: str) -> dict[str, Any] | None:
        """Get the engine's description of an object, or None if there is no such object.

        Raises:
            EngineError, UnavailableError: as `ask`.
        """
        try:
            found = self.ask("GET", path, what)
        except RefusalError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        if not isinstance(found, dict):
            raise EngineError(f"{what}: dockerd's answer makes no sense")
        return found

    def upgrade(self, path: str, what: str, body: Any = None) -> socket.socket:
        """Make a call whose response is a stream of bytes in both directions.

        Returns:
            The connection, positioned at the first byte of the stream.

        Raises:
            RefusalError, UnavailableError, NoAnswerError, EngineError: as `talking`.
        """
        with closing(self._connect(TIMEOUT)) as connection:
            stream = connection.sock
            try:
                headers = {"Connection": "Upgrade", "Upgrade": "tcp", "Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body or {}), headers)
                if stream.recv(len(_UPGRADED), socket.MSG_PEEK) == _UPGRADED:
                    _take_headers(stream)
                    stream.settimeout(None)
                    connection.sock = None  # kept open
                    return stream
            except Exception as error:
                raise self._broken(error, what) from error
            self._check(connection, what)
        raise EngineError(f"{what}: dockerd does not upgrade the connection")

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        import http.client  # imported here because it takes 15 ms, and levels without Docker do not need it

        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(timeout)
        try:
            connection.sock.connect(self.socket)
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        return connection

    def _answer(
        self, connection: http.client.HTTPConnection, method: str, path: str, what: str, body: Any = None
    ) -> http.client.HTTPResponse:
        try:
            if body is None:
                connection.request(method, path)
            else:
                connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        except Exception as error:
            raise self._broken(error, what) from error
        return self._check(connection, what)

    def _check(self, connection: http.client.HTTPConnection, what: str) -> http.client.HTTPResponse:
        """Read a response, and raise an error if it is a refusal."""
        try:
            answer = connection.getresponse()
            if answer.status < _ERRORS:
                return answer
            text = answer.read().decode("utf-8", "replace")
        except Exception as error:
            raise self._broken(error, what) from error
        try:
            text = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            text = text.strip() or f"HTTP {answer.status}"
        raise RefusalError(what, answer.status, _one_line(text))

    def _broken(self, error: Exception, what: str) -> SandboxError:
        if isinstance(error, TimeoutError):
            return NoAnswerError(f"{what}: dockerd gave no answer in time", "look at dockerd's log")
        if isinstance(error, ConnectionError):
            return self._unreachable(error)
        return EngineError(f"{what}: {_one_line(str(error)) or type(error).__name__}")

    def _explain(self, error: Exception, what: str) -> SandboxError | None:
        from docker import errors
        from requests import exceptions
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        if isinstance(error, errors.APIError):
            return RefusalError(what, error.status_code or 0, _one_line(error.explanation or str(error)))
        # Requests has a type for a response that does not begin in time, but hides one that stops half way.
        stopped = any(isinstance(inner, ReadTimeoutError) for inner in (error, *error.args))
        if stopped or isinstance(error, exceptions.ReadTimeout):
            return NoAnswerError(f"{what}: dockerd gave no answer in time", "look at dockerd's log")
        if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError, HTTPError)):
            return self._unreachable(error)
        if isinstance(error, errors.DockerException | exceptions.RequestException):
            return EngineError(f"{what}: {_one_line(str(error))}")
        return None

    def _unreachable(self, error: Exception) -> UnavailableError:
        from sandbox.host.distribution import FIX, distribution, remedy
        from sandbox.host.programs import which

        if "Permission denied" in str(error):
            return UnavailableError(f"{self} may not be used by this user", "run it as root")
        if self.socket != DEFAULT_SOCKET:
            return UnavailableError(
                f"dockerd at {self} does not answer", "start it, or unset DOCKER_HOST, or docker context use default"
            )
        if which("dockerd") is None:
            return UnavailableError("Docker is not installed", remedy("docker.daemon"))
        return UnavailableError(f"dockerd at {self} does not answer", FIX if distribution().debian else "start dockerd")


def _take_headers(stream: socket.socket) -> None:
    """Read to the end of the headers and no further, as the stream's first bytes may follow directly."""
    head = b""
    while not head.endswith(_HEADERS_END):
        both = head + stream.recv(4096, socket.MSG_PEEK)
        if both == head:
            raise ConnectionError("the headers do not end")
        end = both.find(_HEADERS_END)
        head += stream.recv((len(both) if end < 0 else end + len(_HEADERS_END)) - len(head))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"


def _sdk(host: str, version: str) -> APIClient:
    # The SDK's ssh transport loads paramiko, which takes 0.13 s of 0.25 s, and ssh is refused here. An entry of None
    # makes this one import fail, and the SDK takes the transport as not installed. A program that needs the transport
    # must import docker before this.
    sys.modules.setdefault(_SSH_TRANSPORT, None)  # type: ignore[arg-type]
    import docker

    return docker.APIClient(base_url=host, version=version, timeout=int(TIMEOUT))
