"""Docker, asked over its HTTP API on a UNIX socket: in milliseconds, where its SDK takes a fifth of a second to import.

The API is described at docs.docker.com/engine/api; every call here is in version 1.40 and later.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import struct
import tarfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sandbox.errors import SandboxError
from sandbox.host import verdicts
from sandbox.host.distribution import FIX, distribution, remedy
from sandbox.host.finding import Finding
from sandbox.host.programs import which
from sandbox.state.store import named_lock

DEFAULT_HOST = "unix:///var/run/docker.sock"
RUNTIME = "runsc"
RUNTIME_ARGS = ("--network=host",)
"""gVisor then uses the stack of the container's own network namespace; without it Debian's runsc refuses to start."""
PROBE = "sandbox-doctor-probe"
"""The name of the trial's image and container."""
_TIMEOUT = 5.0
_TRIAL_TIMEOUT = 30.0
_OUTCOME = 42
_NOT_FOUND = 404


class DockerError(Exception):
    """The daemon cannot be asked, or refuses; the text is one line."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    server: str
    body: Any


class Engine:
    """One Docker daemon: the one that DOCKER_HOST names, else this host's."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._info: dict[str, Any] | None = None

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.host)
        if parts.scheme == "unix" and parts.path:
            return _UnixConnection(parts.path, timeout)
        if parts.scheme in {"tcp", "http"} and parts.hostname and not os.environ.get("DOCKER_TLS_VERIFY"):
            return http.client.HTTPConnection(parts.hostname, parts.port or 2375, timeout=timeout)
        raise DockerError(f"DOCKER_HOST={self.host} is not a UNIX socket or a plain address on this host")

    def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, timeout: float = _TIMEOUT
    ) -> _Answer:
        """Ask the daemon.

        Args:
            method: of HTTP.
            path: with its query.
            body: sent as JSON.
            raw: sent as it is, in place of `body`.
            timeout: seconds for each read and write.

        Raises:
            DockerError: no answer, or an answer that is not HTTP.
        """
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        headers = {"Content-Type": "application/x-tar" if raw is not None else "application/json"}
        connection = self._connection(timeout)
        try:
            connection.request(method, path, data, headers if data is not None else {})
            response = connection.getresponse()
            text = response.read()
        except FileNotFoundError:
            raise DockerError(f"nothing listens at {self.host}") from None
        except TimeoutError:
            raise DockerError(f"the daemon at {self.host} did not answer within {timeout:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"{self.host}: {getattr(error, 'strerror', None) or error}") from None
        finally:
            connection.close()
        try:
            parsed = json.loads(text) if text else None
        except ValueError:
            parsed = text.decode(errors="replace")
        return _Answer(response.status, response.getheader("Server") or "", parsed)

    def demand(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Any:
        """Ask the daemon for something that takes its time, and take no refusal.

        Raises:
            DockerError: no answer, or a refusal; the text is the daemon's.
        """
        answer = self.call(method, path, body, raw=raw, timeout=_TRIAL_TIMEOUT)
        if answer.status >= http.client.BAD_REQUEST:
            words = answer.body.get("message") if isinstance(answer.body, dict) else answer.body
            raise DockerError(str(words or f"HTTP {answer.status}").strip().splitlines()[-1])
        return answer.body

    def version(self) -> str:
        """The daemon's version.

        Raises:
            DockerError: it does not answer.
        """
        answer = self.call("GET", "/_ping")
        if answer.status != http.client.OK:
            raise DockerError(f"the daemon at {self.host} answers with HTTP {answer.status}")
        return answer.server.removeprefix("Docker/").split(" ")[0] or "of unknown version"

    def info(self) -> dict[str, Any]:
        """What /info says; asked once.

        Raises:
            DockerError: it does not answer, or not sensibly.
        """
        if self._info is None:
            found = self.demand("GET", "/info")
            if not isinstance(found, dict):
                raise DockerError(f"the daemon at {self.host} does not describe itself")
            self._info = found
        return self._info

    def runtime(self) -> dict[str, Any] | None:
        """How the runtime runsc is registered; None when it is not.

        Raises:
            DockerError: the daemon does not answer.
        """
        found = (self.info().get("Runtimes") or {}).get(RUNTIME)
        return found if isinstance(found, dict) else None


def daemon(engine: Engine) -> Finding:
    """Whether the Docker daemon answers."""
    name = "docker.daemon"
    try:
        return Finding(name, True, f"Docker {engine.version()} at {engine.host}")
    except DockerError as error:
        if engine.host != DEFAULT_HOST:
            return Finding(name, False, str(error), "unset DOCKER_HOST, or start the daemon it names")
        if which("dockerd") is None:
            return Finding(name, False, "Docker is not installed", remedy(name))
        return Finding(name, False, str(error), FIX if distribution().debian else "start dockerd")


def runsc(engine: Engine) -> Finding:
    """Whether gVisor's runtime is registered with the daemon, and runs a container."""
    name = "docker.runsc"
    try:
        entry = engine.runtime()
    except DockerError:
        return Finding(name, False, "there is no Docker daemon to run it", remedy("docker.daemon"))
    if entry is None:
        if which(RUNTIME) is None:
            return Finding(name, False, "gVisor is not installed (no runsc)", remedy(name))
        return Finding(name, False, "Docker does not know the runtime runsc", FIX)
    found = _runsc_verdict(engine, entry)
    if found.works:
        return Finding(name, True, found.reason)
    arguments = entry.get("runtimeArgs") or []
    if not set(RUNTIME_ARGS) <= set(arguments):
        fix = f'give the runtime runsc "runtimeArgs": {json.dumps(RUNTIME_ARGS)} in the configuration of dockerd'
        return Finding(name, False, found.reason, fix)
    return Finding(name, False, found.reason, f"the log of dockerd says more; runsc is {entry.get('path')}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether gVisor runs containers, and why not or how it was found."""

    works: bool
    reason: str


def _runsc_verdict(engine: Engine, entry: dict[str, Any]) -> Verdict:
    path = which(str(entry.get("path") or RUNTIME)) or RUNTIME
    key = json.dumps([engine.host, engine.info().get("ID"), entry, verdicts.file_identity(path)], sort_keys=True)
    known = _recall(key)
    if known is not None:
        return known
    try:
        with named_lock("runsc"):
            found = _recall(key) or try_runtime(engine, RUNTIME)
            if found.works:  # a failure is tried again: it takes a second, and a full disk is not for ever
                verdicts.remember("runsc", key, asdict(found))
            return found
    except SandboxError:
        return Verdict(False, "the state directory cannot be written, so it was not tried")


def _recall(key: str) -> Verdict | None:
    known = verdicts.recall("runsc", key)
    try:
        return None if known is None else Verdict(bool(known["works"]), str(known["reason"]))
    except KeyError:
        return None


def try_runtime(engine: Engine, runtime: str, *, network: str = "bridge", name: str = PROBE) -> Verdict:
    """Run a container of one program that exits with a known code, and remove it and its image again.

    Args:
        engine: the daemon.
        runtime: the name under which it knows the runtime.
        network: Docker's name of the network to put the container on.
        name: of the container and its image; what an earlier, killed trial left under it is removed first.
    """
    container = ""
    null = os.stat(os.devnull)
    try:
        _remove(engine, name)
        engine.demand("POST", f"/images/create?fromSrc=-&repo={name}&tag=latest", raw=_image())
        settings = {
            "Image": f"{name}:latest",
            "Entrypoint": ["/probe"],
            "Labels": {"org.sandbox.probe": "1"},
            "HostConfig": {
                "Runtime": runtime,
                "NetworkMode": network,
                "Memory": 128 * 1024 * 1024,
                "CapDrop": ["ALL"],
                "LogConfig": {"Type": "none"},
            },
        }
        container = str(engine.demand("POST", f"/containers/create?name={name}", settings)["Id"])
        engine.demand("POST", f"/containers/{container}/start")
        code = engine.demand("POST", f"/containers/{container}/wait")["StatusCode"]
    except (DockerError, KeyError, TypeError) as error:
        return Verdict(False, f"a container under {runtime} does not start: {error}")
    finally:
        with suppress(DockerError):  # the verdict stands; the next trial removes what stays
            _remove(engine, name)
        if container:
            _end_strays(container)
        _give_back(null)
    if code != _OUTCOME:
        return Verdict(False, f"a container under {runtime} exited with {code} in place of {_OUTCOME}")
    return Verdict(True, f"{runtime} ran a container")


def _give_back(null: os.stat_result) -> None:
    """Restore the owner of the host's /dev/null.

    A container's standard input is that very node, and runsc without `--network=host` hands it to the user `nobody`
    that its sandbox runs as. With a sticky /dev, root itself may then no longer write to it.
    """
    now = os.stat(os.devnull)
    if (now.st_uid, now.st_gid) != (null.st_uid, null.st_gid):
        with suppress(PermissionError):  # not root: then it was not ours to change, and nothing of ours changed it
            os.chown(os.devnull, null.st_uid, null.st_gid)


def _remove(engine: Engine, name: str) -> None:
    for path in (f"/containers/{quote(name)}?force=1&v=1", f"/images/{quote(name)}:latest?force=1"):
        answer = engine.call("DELETE", path, timeout=_TRIAL_TIMEOUT)
        if answer.status >= http.client.BAD_REQUEST and answer.status != _NOT_FOUND:
            raise DockerError(f"the trial's remains cannot be removed: HTTP {answer.status}")


def _end_strays(container: str) -> None:
    """End what still runs for a removed container.

    When the runtime fails between create and start, Docker 20.10 forgets the container but leaves its shim, and runsc
    its sandbox and gofer. Each has the container's id (64 hex digits, never used again) in its command line.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            descriptor = os.pidfd_open(int(entry.name))
            try:
                if container.encode() in (entry / "cmdline").read_bytes():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _image() -> bytes:
    """A tar archive with one static program, /probe."""
    program = _program()
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        member = tarfile.TarInfo("probe")
        member.size, member.mode = len(program), 0o755
        archive.addfile(member, io.BytesIO(program))
    return target.getvalue()


def _program() -> bytes:
    """An x86-64 ELF file, elf(5), that exits with `_OUTCOME`: so a trial needs neither an image nor a compiler."""
    code = b"\xbf" + struct.pack("<I", _OUTCOME) + b"\xb8\x3c\0\0\0" + b"\x0f\x05"  # mov edi; mov eax, exit; syscall
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code
