"""The one module that imports the Docker SDK: which engine, the connection to it, its errors in our words.

Importing this module loads nothing; the SDK is loaded by the first call that talks to a daemon (`Engine.talking`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import host as capability
from sandbox.errors import EngineError, SandboxError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient as APIClient  # also the name by which the modules beside this one know it

DEFAULT_HOST = "unix:///var/run/docker.sock"
TIMEOUT = 60.0
"""Seconds that a call may take, unless it waits for something by its nature."""

_OLDEST = "1.41"
"""Of the API, from Docker 20.10: what calls are made by until the engine has said its version."""
_SSH_TRANSPORT = "docker.transport.sshconn"
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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which engine: an address as in DOCKER_HOST, or the name of a context (docker-context(1)), or the default."""

    host: str | None = None
    context: str | None = None

    @classmethod
    def current(cls) -> Endpoint:
        """What the docker command would talk to: DOCKER_CONTEXT, DOCKER_HOST, then `docker context use`.

        Raises:
            EngineError: the Docker configuration file is damaged.
        """
        context = os.environ.get("DOCKER_CONTEXT")
        if not context and os.environ.get("DOCKER_HOST"):
            return cls(host=os.environ["DOCKER_HOST"])
        if not context:
            path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
            try:
                context = json.loads(path.read_text(encoding="utf-8")).get("currentContext")
            except FileNotFoundError:
                context = None
            except (OSError, ValueError, AttributeError) as error:
                raise EngineError(f"{path} cannot be read: {error}", "mend or remove it") from error
        if context and context != "default":
            return cls(context=context)
        return cls(host=os.environ.get("DOCKER_HOST"))

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Endpoint:
        """Inverse of `to_json`."""
        return cls(host=raw.get("host"), context=raw.get("context"))

    def to_json(self) -> dict[str, str | None]:
        """The endpoint as JSON types."""
        return {"host": self.host, "context": self.context}

    def __str__(self) -> str:
        return f"context {self.context}" if self.context else self.host or DEFAULT_HOST

    @property
    def local(self) -> bool:
        """Whether it looks like an engine on this host. A context is taken for a remote one."""
        return self.context is None and (self.host or DEFAULT_HOST).startswith("unix://")


class Engine:
    """A connection to one dockerd, made when it is first needed.

    Attributes:
        endpoint: which dockerd.
        level: the isolation level that asks, for the remedy when it cannot be reached.
    """

    def __init__(self, endpoint: Endpoint, level: str) -> None:
        self.endpoint = endpoint
        self.level = level
        self._api: APIClient | None = None

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
                self._api = self._connect()
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

    def _connect(self) -> APIClient:
        if self.endpoint.local:
            address = (self.endpoint.host or DEFAULT_HOST).removeprefix("unix://")
            if not os.path.exists(address):
                raise self._unreachable("no such socket")  # known without the SDK's 0.1 s
        return _connect(self.endpoint)

    def _explain(self, error: Exception, what: str) -> SandboxError | None:
        from docker import errors
        from requests import exceptions
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        if isinstance(error, errors.APIError):
            return RefusalError(what, error.status_code or 0, _one_line(error.explanation or str(error)))
        cause: BaseException | None = error
        if isinstance(error, errors.DockerException) and error.__cause__ is not None:
            cause = error.__cause__  # the version call wraps whatever went wrong
        # Requests has a type for an answer that does not begin in time, and hides one that stops half way.
        stopped = cause is not None and any(isinstance(inner, ReadTimeoutError) for inner in (cause, *cause.args))
        if stopped or isinstance(cause, exceptions.ReadTimeout):
            return NoAnswerError(f"{what}: dockerd gave no answer in time", "look at dockerd's log")
        if isinstance(cause, (exceptions.ConnectionError, exceptions.ChunkedEncodingError, HTTPError)):
            return self._unreachable(str(cause))
        if isinstance(error, errors.DockerException | exceptions.RequestException):
            return EngineError(f"{what}: {_one_line(str(error))}")
        return None

    def _unreachable(self, reason: str) -> UnavailableError:
        if not self.endpoint.local:
            return UnavailableError(
                f"dockerd at {self.endpoint} cannot be reached", "check DOCKER_HOST or `docker context ls`"
            )
        if "Permission denied" in reason:
            return UnavailableError(f"{self.endpoint} may not be used by this user", "run it as root")
        lacking = [one for one in capability.missing_for(("docker.daemon",)) if one.what.startswith("docker")]
        if lacking:
            return UnavailableError(lacking[0].reason, lacking[0].remedy)
        return UnavailableError(f"dockerd at {self.endpoint} does not answer", "sandbox doctor --fix")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 1] + "…"


def _connect(endpoint: Endpoint) -> APIClient:
    # The SDK's ssh transport loads paramiko: 0.16 s of 0.28 s. An entry of None makes that one import fail, which the
    # SDK takes for a transport that is not installed; it is put right below when an ssh:// address asks for it.
    if "docker" not in sys.modules:
        sys.modules.setdefault(_SSH_TRANSPORT, None)  # type: ignore[arg-type]
    import docker

    base_url, tls = endpoint.host, None
    if endpoint.context is not None:
        context = docker.context.ContextAPI.get_context(endpoint.context)
        if context is None or not context.Host:
            raise UnavailableError(f"there is no Docker context {endpoint.context!r}", "docker context ls")
        base_url, tls = context.Host, context.TLSConfig
    elif os.environ.get("DOCKER_CERT_PATH") or os.environ.get("DOCKER_TLS_VERIFY"):
        tls = docker.utils.kwargs_from_env(environment={**os.environ, "DOCKER_HOST": base_url or ""}).get("tls")
    base_url = base_url or DEFAULT_HOST
    if base_url.startswith("ssh://"):
        _load_ssh_transport()
    api = docker.APIClient(
        base_url=base_url, version=_OLDEST, timeout=int(TIMEOUT), tls=tls or False, use_ssh_client=True
    )
    # Newer engines refuse old versions, and the body of the create call depends on the version: so it is the engine's
    # own. The SDK would ask /version, which takes dockerd 20.10 16 ms; the answer to a ping has it too, in 1 to 2 ms.
    version = api.get(f"{api.base_url}/_ping", timeout=TIMEOUT).headers.get("Api-Version")
    api._version = version or api._retrieve_server_version()
    return api


def _load_ssh_transport() -> None:
    if sys.modules.get(_SSH_TRANSPORT) is None:
        sys.modules.pop(_SSH_TRANSPORT, None)
        adapter = importlib.import_module(_SSH_TRANSPORT).SSHHTTPAdapter
        for module in ("docker.transport", "docker.api.client"):
            vars(sys.modules[module])["SSHHTTPAdapter"] = adapter
