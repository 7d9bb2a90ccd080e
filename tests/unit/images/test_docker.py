"""The Docker form: the image's configuration, and the meaning of an engine's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import BusyError, EngineError
from sandbox.images import dockerd
from sandbox.images.recipe import load
from tests.unit.engine import FakeEngine, listening

DIGEST = "ab" * 32


def test_the_images_configuration() -> None:
    found = dockerd.changes(DIGEST, "cd" * 32, load().docker, 10001)
    assert 'CMD ["/usr/bin/tini", "--", "/usr/bin/python3"' in found[0]
    assert "USER 10001:10001" in found
    assert "EXPOSE 8080/tcp" in found
    assert 'ENV HOME="/tmp"' in found
    assert f"LABEL org.sandbox.image.digest={DIGEST}" in found
    assert f"LABEL org.sandbox.image.rootfs={'cd' * 32}" in found


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with listening(tmp_path / "s") as found:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{found.path}")
        yield found


IMAGE = f"GET /images/{dockerd.reference(DIGEST).replace(':', '%3A')}/json"


def test_find_wants_its_own_label(engine: FakeEngine) -> None:
    engine.answers["GET /images/"] = (200, {"Size": 1, "Config": {"Labels": {dockerd.LABEL_DIGEST: DIGEST}}})
    found = dockerd.find(DIGEST)
    assert found is not None
    assert found["Size"] == 1
    assert engine.asked == [IMAGE]
    assert dockerd.find(DIGEST[:12] + "0" * 52) is None
    for config in ({"Labels": None}, {}, None):
        engine.answers["GET /images/"] = (200, {"Config": config})
        assert dockerd.find(DIGEST) is None
    engine.answers["GET /images/"] = (404, {"message": "no such image"})
    assert dockerd.find(DIGEST) is None


def test_errors_are_the_engines_words(engine: FakeEngine) -> None:
    engine.answers["GET /images/"] = (500, {"message": "out of order"})
    with pytest.raises(EngineError, match="the image cannot be looked up: out of order"):
        dockerd.find(DIGEST)
    engine.answers["GET /images/"] = (502, b"<html>")
    with pytest.raises(EngineError, match=r"the images cannot be listed: .*(502|<html>)"):
        dockerd.images()


def test_a_used_image_is_kept(engine: FakeEngine) -> None:
    engine.answers["DELETE /images/"] = (409, {"message": "image is being used by container 12"})
    with pytest.raises(BusyError, match="container 12"):
        dockerd.remove("sandbox:ab")
    engine.answers["DELETE /images/"] = (404, {"message": "no such image"})
    assert dockerd.remove("sandbox:ab") is False
    engine.answers["DELETE /images/"] = (200, [])
    assert dockerd.remove("sandbox:ab") is True
    assert engine.asked[-1].startswith("DELETE /images/sandbox:ab")


def test_an_import_that_fails_half_way(engine: FakeEngine, tmp_path: Path) -> None:
    # The engine answers 200 before it reads the archive.
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"x" * 3_000_000)
    said = b'{"status":"x"}\r\n{"error":"no space left on device","errorDetail":{}}\r\n'
    engine.answers["POST /images/create"] = (200, said)
    with pytest.raises(EngineError, match="no space left on device"):
        dockerd.load(tmp_path / "root", DIGEST, DIGEST, load().docker, 10001)
    engine.answers["POST /images/create"] = (200, b'{"status":"sha256:ab"}\r\n')
    dockerd.load(tmp_path / "root", DIGEST, DIGEST, load().docker, 10001)
    assert f"repo=sandbox&tag={DIGEST[:12]}" in engine.asked[-1]
    with pytest.raises(EngineError, match="could not be read"):
        dockerd.load(tmp_path / "absent", DIGEST, DIGEST, load().docker, 10001)
    assert engine.asked[-1].startswith(f"DELETE /images/{dockerd.reference(DIGEST)}")
