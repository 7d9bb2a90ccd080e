"""The one Docker client: which dockerd, the connection to it, and its errors in our words.

Calls are made by the Docker SDK, which the first of them loads (`Engine.talking`). Loading it takes a command 0.12 s,
and `docker exec` as a whole takes 0.07 s. So what `exec`, `ps` and the doctor ask goes over the same socket by
http.client (`Engine.ask`, `Engine.look`), as do the streams that an answer is upgraded to (`Engine.upgrade`), which the
SDK loses the beginning of. Paths there have no version, so that the engine's own applies. The API is described at
https://docs.docker.com/reference/api/engine/.

Engines are local: one on another host is refused, whatever names it.
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

    from docker import APIClient as APIClient  # also the name by which the modules beside this one know it

DEFAULT_SOCKET = "/var/run/docker.sock"
TIMEOUT = 60.0
"""Seconds that a call may take, unless it waits for something by its nature."""

_PING_TIMEOUT = 10.0
"""Seconds in which an engine that is well says that it is there."""

_SSH_TRANSPORT = "docker.transport.sshconn"
_NOT_FOUND = 404
_ERRORS = 400
_UPGRADED = b"HTTP/1.1 101"
_HEADERS_END = b"\r\n\r\n"
_MAX_REASON = 300
"""Characters of the engine's own words that are shown."""


class RefusalError(EngineError):
    """The engine answered, and the answer was no.

    Attributes:
        status: of the HTTP answer, see the Docker Engine API: 404 no such thing, 409 conflict.
        reason: the engine's words, one line.
    """

    def __init__(self, what: str, status: int, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.status = status
        self.reason = reason


class NoAnswerError(EngineError):
    """The engine took the question and gave no answer in time."""


def socket_path() -> str:
    """The socket of the dockerd that the docker command would use.

    That is DOCKER_HOST, else the context of DOCKER_CONTEXT or of `docker context use`, else the default.

    Raises:
        UnavailableError: it is not reached by a local socket, or Docker's configuration cannot be read.
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
        raise UnavailableError(f"{path} cannot be read: {error}", "mend or remove it") from error
    return str(name) if name else None


def _context(folder: Path, name: str) -> str:
    """The address that a context leads to; docker names its directory by the SHA-256 of the name."""
    import hashlib  # loads OpenSSL

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
    """A connection to one dockerd, made when it is first needed.

    Attributes:
        socket: the path of its socket.
    """

    def __init__(self, path: str | None = None) -> None:
        """Note where it is: at a socket's path, or where the docker command would look.

        Raises:
            UnavailableError: as `socket_path`.
        """
        self.socket = path or socket_path()
        self._api: APIClient | None = None
        self._version: Version | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket}"

    def version(self) -> Version:
        """Its versions, from the answer to a ping: dockerd takes 1 ms for it, and 16 ms for /version.

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
        """The SDK's low-level client; errors of it that leave the block become ours.

        Args:
            what: what would not be done, such as "the container could not be created".

        Raises:
            RefusalError: the engine refused; has the HTTP status.
            UnavailableError: the engine cannot be reached.
            NoAnswerError: it gave no answer in time.
            EngineError: it gave no sensible answer.
        """
        try:
            if self._api is None:
                # Newer engines refuse old versions of the API, and the body of a create call depends on the version.
                self._api = _sdk(str(self), self.version().api)
                # Its idle connections end with us, and not when a collector comes by.
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
        """Make a small call without the SDK; returns the answer's JSON, None where it is empty.

        Args:
            method: of HTTP.
            path: of the API, without a version.
            what: what would not be done, as for `talking`.
            body: JSON types.

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
        """Get the engine's description of one thing; None when there is no such thing.

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
        """Make a call whose answer is a stream of bytes in both directions.

        Returns:
            The connection, at the first byte of the stream.

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
        import http.client  # 15 ms, which a level without Docker need not pay

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
        """The answer, unless it is a refusal."""
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
        # Requests has a type for an answer that does not begin in time, and hides one that stops half way.
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
    """Read up to the end of the headers and no further: what comes along with them is for the reader of the stream."""
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
    # The SDK's ssh transport loads paramiko: 0.13 s of 0.25 s, for what is refused here. An entry of None makes that
    # one import fail, which the SDK takes for a transport that is not installed. A program that needs it imports docker
    # before this.
    sys.modules.setdefault(_SSH_TRANSPORT, None)  # type: ignore[arg-type]
    import docker

    return docker.APIClient(base_url=host, version=version, timeout=int(TIMEOUT))
