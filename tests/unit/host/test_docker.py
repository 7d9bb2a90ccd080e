"""The Docker client: the engines that it uses or refuses, and the meaning of their answers."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker import errors
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from sandbox import images
from sandbox.errors import EXIT_ERROR, EngineError, SandboxError, UnavailableError
from sandbox.host import docker, docker_check
from sandbox.host.docker import DEFAULT_SOCKET, Engine, NoAnswerError, RefusalError, socket_path
from sandbox.images import dockerd
from sandbox.isolation.docker.driver import ContainerIsolation, GVisorIsolation
from sandbox.spec import SandboxSpec
from tests.unit.engine import VARIABLES, FakeEngine, listening

REMOTE = [
    "ssh://somebody@192.0.2.1",
    "tcp://192.0.2.1:2375",
    "tcp://127.0.0.1:2375",
    "https://192.0.2.1:2376",
    "npipe:////./pipe/docker_engine",
    "fd://",
    "unix://",
    "unix://relative.sock",
    "nonsense",
    "/var/run/docker.sock",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty directory for Docker's configuration."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


def add_context(folder: Path, name: str, host: str) -> None:
    place = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_the_default() -> None:
    assert socket_path() == DEFAULT_SOCKET == "/var/run/docker.sock"
    assert str(Engine()) == "unix:///var/run/docker.sock"


def test_docker_host_is_honoured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_context(folder, "near", "unix:///run/near.sock")
    (folder / "config.json").write_text('{"currentContext": "near"}')
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    assert socket_path() == "/run/other.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "near")  # current docker(1): the host takes precedence over the context
    assert socket_path() == "/run/other.sock"
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")  # does not apply to a local socket
    assert socket_path() == "/run/other.sock"
    monkeypatch.setenv("DOCKER_HOST", "")
    assert socket_path() == "/run/near.sock"


def test_contexts_are_honoured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_context(folder, "near", "unix:///run/near.sock")
    add_context(folder, "other", "unix:///run/other.sock")
    (folder / "config.json").write_text('{"currentContext": "near"}')
    assert socket_path() == "/run/near.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    assert socket_path() == "/run/other.sock"
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert socket_path() == DEFAULT_SOCKET
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(UnavailableError, match="'gone' cannot be read"):
        socket_path()


@pytest.mark.parametrize("content", [b"{", b"[]", b"7", b"\xff"])
def test_a_damaged_configuration_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UnavailableError, match=r"config\.json cannot be read"):
        socket_path()


def refusals() -> Iterator[SandboxError]:
    """Return the messages of the levels, the images and the doctor."""
    for level in (ContainerIsolation(), GVisorIsolation()):
        with pytest.raises(UnavailableError) as caught:
            level.prepare(SandboxSpec("a", "reactor", level.name, ("true",)), lambda _: None)
        yield caught.value
    for look in (lambda: dockerd.find("ab" * 32), dockerd.images, lambda: dockerd.remove("sandbox:ab")):
        with pytest.raises(UnavailableError) as caught:
            look()
        yield caught.value
    finding = docker_check.daemon()
    assert not finding.ok
    yield UnavailableError(finding.detail, finding.remedy)


@pytest.mark.parametrize("by", ["DOCKER_HOST", "DOCKER_CONTEXT", "docker context use"])
@pytest.mark.parametrize("host", REMOTE)
def test_a_remote_engine_is_refused_by_all_with_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, by: str
) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(folder))
    add_context(folder, "far", host)
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certificates")
    if by == "docker context use":
        (folder / "config.json").write_text('{"currentContext": "far"}')
    else:
        monkeypatch.setenv(by, host if by == "DOCKER_HOST" else "far")
    lines = {str(error) for error in refusals()}
    assert lines == {
        f"dockerd at {host} cannot be used: it must be on this host, at a Unix socket "
        "(unset DOCKER_HOST and DOCKER_CONTEXT, or docker context use default)"
    }
    assert {error.exit_code for error in refusals()} == {EXIT_ERROR}
    assert images.find(images.Form.DOCKER) is None


def test_the_sdk_is_loaded_by_its_first_call_and_without_ssh() -> None:
    script = (
        "import sandbox.isolation.docker.driver, sandbox.images.dockerd, sandbox.host.docker_check, sys\n"
        "print(*{'docker', 'requests', 'http.client'} & set(sys.modules))\n"
        "from sandbox.host import docker\n"
        "docker._sdk('unix:///x', '1.41')\n"
        "print('docker' in sys.modules, 'paramiko' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout == "\nTrue False\n"


# Answers


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with listening(tmp_path / "s") as found:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{found.path}")
        yield found


def test_versions_come_with_a_ping(engine: FakeEngine) -> None:
    found = Engine()
    assert found.version() == ("27.1.0", "1.41")
    with found.talking("x") as api:
        assert api.api_version == "1.41"
    assert engine.asked == ["GET /_ping"]


def test_small_calls_need_no_sdk(engine: FakeEngine) -> None:
    engine.answers |= {"GET /containers/a/json": (200, {"Id": "a"}), "POST /exec/e/resize": (200, b"")}
    assert Engine().look("/containers/a/json", "x") == {"Id": "a"}
    assert Engine().look("/containers/b/json", "x") is None
    assert Engine().ask("POST", "/exec/e/resize?h=1&w=2", "x") is None
    assert engine.asked[-1] == "POST /exec/e/resize?h=1&w=2"


@pytest.mark.parametrize("sdk", [False, True])
def test_a_refusal_carries_status_and_words(engine: FakeEngine, sdk: bool) -> None:
    def by_sdk() -> None:
        with Engine().talking("it could not be done") as api:
            api.inspect_container("a")

    def refused(status: int, body: Any) -> RefusalError:
        engine.answers["GET /containers/a/json"] = (status, body)
        with pytest.raises(RefusalError) as caught:
            by_sdk() if sdk else Engine().ask("GET", "/containers/a/json", "it could not be done")
        assert "\n" not in str(caught.value)
        return caught.value

    found = refused(409, {"message": "Conflict.\n  The name is taken\n"})
    assert (found.status, found.reason) == (409, "Conflict. The name is taken")
    assert found.message == "it could not be done: Conflict. The name is taken"
    assert len(refused(500, {"message": "x" * 5000}).message) < 400
    assert refused(502, b"<html>").message.startswith("it could not be done: ")


def test_an_answer_that_makes_no_sense(engine: FakeEngine) -> None:
    for body in (b"<html>", b"[]", b'"a"'):
        engine.answers["GET /info"] = (200, body)
        with pytest.raises(EngineError, match=r"it is unwell: dockerd's answer"):
            Engine().look("/info", "it is unwell")


def test_a_stream_begins_with_its_first_byte(engine: FakeEngine) -> None:
    engine.answers |= {
        "POST /exec/e/start": (101, b"\x01early"),
        "POST /exec/f/start": (409, {"message": "it is over"}),
    }
    with Engine().upgrade("/exec/e/start", "x", {"Tty": False}) as stream, stream.makefile("rb") as file:
        assert file.read() == b"\x01early"
    with pytest.raises(RefusalError, match="not run: it is over"):
        Engine().upgrade("/exec/f/start", "not run")
    engine.answers["POST /exec/e/start"] = (200, b"")
    with pytest.raises(EngineError, match="does not upgrade"):
        Engine().upgrade("/exec/e/start", "not run")


def saying(tmp_path: Path, *pieces: bytes) -> Engine:
    """Run an engine that gives this answer to any request."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "raw"))
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as connection:
            request = b""
            while not request.endswith(b"{}"):  # a close with unread data would reset the connection, see unix(7)
                request += connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # a close with unread data would reset the connection
                pass

    threading.Thread(target=serve, daemon=True).start()
    return Engine(str(tmp_path / "raw"))


def test_headers_that_come_in_pieces(tmp_path: Path) -> None:
    engine = saying(tmp_path, b"HTTP/1.1 101 UPG", b"RADED\r\nUpgrade: tcp\r", b"\n\r\nfirst", b"second")
    with engine.upgrade("/x", "x") as stream, stream.makefile("rb") as file:
        assert file.read() == b"firstsecond"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 UPGRADED\r\n"])
def test_an_engine_that_ends_in_an_answer(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        saying(tmp_path, said).upgrade("/x", "x")


def test_an_engine_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "TIMEOUT", 0.1)
    monkeypatch.setattr(docker, "_PING_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "raw"))
        server.listen()
        for call in (
            lambda: Engine(str(tmp_path / "raw")).ask("GET", "/info", "x"),
            lambda: Engine(str(tmp_path / "raw")).upgrade("/exec/e/start", "x"),
            Engine(str(tmp_path / "raw")).version,
        ):
            with pytest.raises(NoAnswerError, match="no answer in time"):
                call()


# Errors of the SDK

LOCAL = "/run/test.sock"


def explained(error: Exception) -> SandboxError:
    engine = Engine(LOCAL)
    engine._api = SimpleNamespace()
    with pytest.raises(SandboxError) as caught, engine.talking("it could not be done"):
        raise error
    assert "\n" not in str(caught.value)
    return caught.value


TIMED_OUT = ReadTimeoutError(None, "/", "Read timed out.")  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [requests.ReadTimeout("x"), requests.ConnectionError(TIMED_OUT), TIMED_OUT])
def test_no_answer_in_time(error: Exception) -> None:
    assert isinstance(explained(error), NoAnswerError)


@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError(ProtocolError("Connection aborted.", ConnectionRefusedError(111, "refused"))),
        ProtocolError("Connection broken"),
        requests.exceptions.ChunkedEncodingError("cut short"),
    ],
)
def test_an_engine_that_cannot_be_reached(error: Exception) -> None:
    found = explained(error)
    assert isinstance(found, UnavailableError)
    assert found.message == f"dockerd at unix://{LOCAL} does not answer"
    assert "unset DOCKER_HOST" in (found.hint or "")


def test_an_engine_that_is_not_there_is_said_as_the_doctor_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "DEFAULT_SOCKET", str(tmp_path / "none.sock"))
    for programs, words in (({}, "Docker is not installed"), ({"dockerd": "/usr/sbin/dockerd"}, "does not answer")):
        monkeypatch.setattr("sandbox.host.programs.which", programs.get)
        with pytest.raises(UnavailableError, match=words) as caught:
            Engine().version()
        finding = docker_check.daemon()
        assert (finding.detail, finding.remedy) == (caught.value.message, caught.value.hint)


def test_no_permission_says_who_may() -> None:
    error = requests.ConnectionError(ProtocolError("Connection aborted.", PermissionError(13, "Permission denied")))
    assert explained(error).hint == "run it as root"


def test_other_errors_are_not_swallowed() -> None:
    assert "odd" in explained(errors.DockerException("odd")).message
    engine = Engine(LOCAL)
    engine._api = SimpleNamespace()
    with pytest.raises(KeyError), engine.talking("x"):
        raise KeyError("a mistake of ours")
