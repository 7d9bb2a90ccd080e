"""Staging an application's files: which are copied, and that none from outside can slip in."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sandbox.errors import SpecError
from sandbox.request import staging
from sandbox.spec import MIB


@pytest.fixture
def app(tmp_path: Path) -> Path:
    app = tmp_path / "app"
    (app / "static" / "deep").mkdir(parents=True)
    for name in ("sandbox.toml", "server.py", "static/a.html", "static/deep/b.html", ".env", "static/.hidden"):
        (app / name).write_text(name, encoding="ascii")
    (app / ".git").mkdir()
    (app / ".git" / "config").touch()
    (app / "__pycache__").mkdir()
    (app / "__pycache__" / "x.pyc").touch()
    return app


def staged(app: Path, patterns: list[str] | None = None, limit: int = MIB) -> set[str]:
    destination = app.parent / "copy"
    staging.stage(app, patterns, destination, limit)
    return {str(path.relative_to(destination)) for path in destination.rglob("*") if not path.is_dir()}


def refused(app: Path, patterns: list[str] | None = None, limit: int = MIB) -> str:
    with pytest.raises(SpecError) as caught:
        staged(app, patterns, limit)
    assert str(caught.value).isprintable()
    assert os.listdir(app.parent) == ["app"], "something was left of it"
    return str(caught.value)


def test_everything_but_what_is_hidden(app: Path) -> None:
    assert staged(app) == {"server.py", "static/a.html", "static/deep/b.html"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["server.py"], {"server.py"}),
        (["static"], {"static/a.html", "static/deep/b.html"}),
        (["static/*"], {"static/a.html", "static/deep/b.html"}),
        (["static/*.html"], {"static/a.html"}),
        (["**/*.html"], {"static/a.html", "static/deep/b.html"}),
        (["static/**"], {"static/a.html", "static/deep/b.html"}),
        (["**"], {"server.py", "static/a.html", "static/deep/b.html"}),
        (["."], {"server.py", "static/a.html", "static/deep/b.html"}),
        ([".env", "*.py"], {".env", "server.py"}),
        (["static/.hidden"], {"static/.hidden"}),
        ([".git"], {".git/config"}),
        (["s?rver.[pq]y"], {"server.py"}),
    ],
)
def test_patterns(app: Path, patterns: list[str], expected: set[str]) -> None:
    assert staged(app, patterns) == expected


@pytest.mark.parametrize(("pattern", "near"), [("srever.py", "server.py"), ("static/c.html", "static/a.html")])
def test_a_pattern_that_fits_nothing(app: Path, pattern: str, near: str) -> None:
    assert f"did you mean {near!r}?" in refused(app, ["server.py", pattern])


def test_sandbox_toml_stays_behind(app: Path) -> None:
    assert refused(app, ["sandbox.toml"])


def test_modes_and_owner(app: Path) -> None:
    (app / "server.py").chmod(0o4711)
    (app / "static" / "a.html").chmod(0o666)
    (app / "static").chmod(0o700)
    staged(app)
    found = {
        name: stat.S_IMODE((app.parent / "copy" / name).stat().st_mode)
        for name in (".", "static", "server.py", "static/a.html")
    }
    assert found == {".": 0o755, "static": 0o755, "server.py": 0o755, "static/a.html": 0o644}
    assert (app.parent / "copy" / "server.py").stat().st_uid == os.geteuid()
    assert (app.parent / "copy" / "server.py").read_text(encoding="ascii") == "server.py"


def test_links_that_stay(app: Path) -> None:
    (app / "static" / "up.py").symlink_to("../server.py")
    (app / "all").symlink_to("static/deep")
    staged(app)
    assert os.readlink(app.parent / "copy" / "static" / "up.py") == "../server.py"
    assert os.readlink(app.parent / "copy" / "all") == "static/deep"


@pytest.mark.parametrize(
    "leads", ["/etc/passwd", "../../outside", "deep/../../../outside", "./../../x", "deep/..", "..", "../.."]
)
def test_links_that_leave(app: Path, leads: str) -> None:
    (app / "static" / "link").symlink_to(leads)
    if leads == "..":  # from static/ this is the application's own directory
        assert staged(app)
    else:
        assert "symbolic link out of the directory" in refused(app)


def test_a_linked_directory_is_not_entered(app: Path) -> None:
    outside = app.parent.parent / f"outside-{os.getpid()}"
    outside.mkdir()
    try:
        (outside / "secret").touch()
        (app / "way").symlink_to(outside)
        assert "symbolic link" in refused(app)
        assert "matches nothing" in refused(app, ["way/secret"])
    finally:
        (outside / "secret").unlink()
        outside.rmdir()


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_neither_file_nor_directory(app: Path, kind: str) -> None:
    place = app / "odd"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(place))
    else:
        if os.geteuid() != 0:
            pytest.skip("making a device file takes root")
        os.mknod(place, 0o600 | 0o020000, os.makedev(1, 5))
    assert "odd" in refused(app)
    assert staged(app, ["server.py"]) == {"server.py"}, "what is not asked for is in nobody's way"


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"a\x1b[2J"])
def test_names_that_cannot_be_printed(app: Path, name: bytes) -> None:
    (Path(os.fsdecode(os.fsencode(app) + b"/" + name))).touch()
    assert "name" in refused(app)


def test_too_much(app: Path) -> None:
    (app / "big").write_bytes(b"x" * (MIB + 1))
    assert "1 MiB" in refused(app)
    assert "big" not in staged(app, ["server.py"])


def test_a_file_that_grows_is_counted_as_read(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (app / "grows").write_bytes(b"x")
    real = os.fstat
    monkeypatch.setattr(staging, "_CHUNK", 1024)

    def grow(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if stat.S_ISREG(found.st_mode):
            os.truncate(app / "grows", 2 * MIB)
        return found

    monkeypatch.setattr(os, "fstat", grow)
    assert "1 MiB" in refused(app)


def test_too_many(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MAX_ENTRIES", 5)
    assert "5 entries" in refused(app)


def test_too_deep(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MAX_DEPTH", 1)
    assert "deep" in refused(app)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_swapped_for_a_link_is_not_followed(app: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Between the listing and the opening, the directory's owner replaces an entry by a link to /etc."""
    real = os.open
    place = app / ("server.py" if what == "file" else "static")

    def swap(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == place.name and not flags & os.O_CREAT and not place.is_symlink():
            place.rename(app.parent.parent / f"moved-{what}")
            place.symlink_to("/etc/passwd" if what == "file" else "/etc")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    assert "symbolic link out of the directory" in refused(app)


def test_no_pattern_takes_for_ever(app: Path) -> None:
    deep = app
    for _ in range(staging.MAX_DEPTH - 2):
        deep /= "d"
    deep.mkdir(parents=True)
    assert refused(app, ["**/*/*/*/*/*/**/" + "*a" * 100])
