"""The Docker form: the endpoint's choice, the image's configuration, and what an engine's answers mean."""

from __future__ import annotations

import hashlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import BusyError, EngineError, UnavailableError
from sandbox.images import dockerd
from sandbox.images.endpoint import DEFAULT_HOST, Endpoint
from sandbox.images.recipe import load

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()


def add_context(tmp_path: Path, name: str, host: str) -> Path:
    identity = hashlib.sha256(name.encode()).hexdigest()
    folder = tmp_path / "config/contexts/meta" / identity
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    return tmp_path / "config/contexts/tls" / identity / "docker"


def test_the_default_endpoint() -> None:
    assert Endpoint.current() == Endpoint(DEFAULT_HOST)


def test_docker_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    (tmp_path / "config/config.json").write_text('{"currentContext": "far"}')
    assert Endpoint.current() == Endpoint("tcp://192.0.2.1:2375")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    assert Endpoint.current() == Endpoint("tcp://192.0.2.1:2375", tmp_path / "config")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/certs")
    assert Endpoint.current().certificates == Path("/certs")


def test_contexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates = add_context(tmp_path, "far", "tcp://192.0.2.7:2376")
    (tmp_path / "config/config.json").write_text('{"currentContext": "far"}')
    assert Endpoint.current() == Endpoint("tcp://192.0.2.7:2376")
    certificates.mkdir(parents=True)
    assert Endpoint.current() == Endpoint("tcp://192.0.2.7:2376", certificates)
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert Endpoint.current() == Endpoint(DEFAULT_HOST)
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert Endpoint.current().host == "tcp://192.0.2.7:2376"
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    with pytest.raises(UnavailableError, match="'gone' cannot be read"):
        Endpoint.current()


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config/config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UnavailableError, match="cannot be read"):
        Endpoint.current()


@pytest.mark.parametrize("host", ["", "nonsense", "unix://", "tcp://", "ssh://", "ssh://-oProxyCommand=x", "npipe://x"])
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(UnavailableError, match="cannot be used"):
        Endpoint(host).connect(1.0)


def test_missing_certificates_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="certificates"):
        Endpoint("tcp://192.0.2.1", tmp_path).connect(1.0)


def test_the_images_configuration() -> None:
    found = dockerd.changes(DIGEST, "cd" * 32, load().docker, 10001)
    assert 'CMD ["/usr/bin/tini", "--", "/usr/bin/python3"' in found[0]
    assert "USER 10001:10001" in found
    assert "EXPOSE 8080/tcp" in found
    assert 'ENV HOME="/tmp"' in found
    assert f"LABEL org.sandbox.image.digest={DIGEST}" in found
    assert f"LABEL org.sandbox.image.rootfs={'cd' * 32}" in found


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    answer = (200, b"{}")


class _Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        while (size := int(self.rfile.readline(), 16)) > 0:
            self.rfile.read(size + 2)
        self._answer()

    def _answer(self) -> None:
        assert isinstance(self.server, _Server)
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    path = str(tmp_path / "s")
    with _Server(path, _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        yield server
        server.shutdown()
        thread.join()


def test_find_wants_its_own_label(engine: _Server) -> None:
    engine.answer = (200, json.dumps({"Size": 1, "Config": {"Labels": {dockerd.LABEL_DIGEST: DIGEST}}}).encode())
    found = dockerd.find(DIGEST)
    assert found is not None
    assert found["Size"] == 1
    assert dockerd.find(DIGEST[:12] + "0" * 52) is None
    for config in ({"Labels": None}, {}, None):
        engine.answer = (200, json.dumps({"Config": config}).encode())
        assert dockerd.find(DIGEST) is None
    engine.answer = (404, b'{"message": "no such image"}')
    assert dockerd.find(DIGEST) is None


def test_errors_are_the_engines_words(engine: _Server) -> None:
    engine.answer = (500, b'{"message": "out of order"}')
    with pytest.raises(EngineError, match="docker answered 500: out of order"):
        dockerd.find(DIGEST)
    engine.answer = (502, b"<html>")
    with pytest.raises(EngineError, match="502: <html>"):
        dockerd.images()


def test_a_used_image_is_kept(engine: _Server) -> None:
    engine.answer = (409, b'{"message": "image is being used by container 12"}')
    with pytest.raises(BusyError, match="container 12"):
        dockerd.remove("sandbox:ab")
    engine.answer = (404, b"{}")
    assert dockerd.remove("sandbox:ab") is False
    engine.answer = (200, b"[]")
    assert dockerd.remove("sandbox:ab") is True


def test_an_import_that_fails_half_way(engine: _Server, tmp_path: Path) -> None:
    # The engine has answered 200 before it reads the archive.
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"x" * 3_000_000)
    engine.answer = (200, b'{"status":"x"}\r\n{"error":"no space left on device","errorDetail":{}}\r\n')
    with pytest.raises(EngineError, match="no space left on device"):
        dockerd.load(tmp_path / "root", DIGEST, DIGEST, load().docker, 10001)
    engine.answer = (200, b'{"status":"sha256:ab"}\r\n')
    dockerd.load(tmp_path / "root", DIGEST, DIGEST, load().docker, 10001)
    with pytest.raises(EngineError, match="could not be read"):
        dockerd.load(tmp_path / "absent", DIGEST, DIGEST, load().docker, 10001)
