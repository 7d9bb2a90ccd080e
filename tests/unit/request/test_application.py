"""Reading sandbox.toml: the values it may have, and the one-line error for any other."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.errors import NotFoundError, SandboxError, SpecError
from sandbox.request import application

WHOLE = """
command = ["python3", "server.py"]
port = 8000
ready_path = "/ready"
workdir = "/app/src"
files = ["server.py", "static/", "./**/*.html"]

[env]
GREETING = "hello"

[limits]
cpus = 0.5
memory = "128m"
pids = 64
disk = "32m"
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    return tmp_path / "app"


def refused(app: Path, text: str | bytes) -> str:
    (app / "sandbox.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SandboxError) as caught:
        application.load(app)
    assert str(caught.value).isprintable(), "one line"
    assert caught.value.hint, f"{caught.value.message}: no hint what would be right"
    return str(caught.value)


def test_everything_that_can_be_said(app: Path) -> None:
    (app / "sandbox.toml").write_text(WHOLE, encoding="utf-8")
    assert application.load(app) == application.Application(
        directory=app,
        command=("python3", "server.py"),
        port=8000,
        ready_path="/ready",
        workdir="/app/src",
        files=("server.py", "static", "**/*.html"),
        env={"GREETING": "hello"},
        cpus="0.5",
        memory="128m",
        pids=64,
        disk="32m",
    )


def test_a_command_is_enough(app: Path) -> None:
    (app / "sandbox.toml").write_text('command = ["true"]', encoding="utf-8")
    found = application.load(f"{app}/")
    assert found.directory == app
    assert (found.port, found.ready_path, found.workdir, found.files) == (None, "/", "/app", None)


def test_a_directory_is_named_by_its_real_place(app: Path) -> None:
    (app / "sandbox.toml").write_text('command = ["true"]', encoding="utf-8")
    (app.parent / "link").symlink_to(app)
    assert application.load(app.parent / "link").directory == app


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("prot = 80", "did you mean port?"),
        ("kommand = []", "did you mean command?"),
        ("readypath = '/'", "did you mean ready_path?"),
        ("zzzz = 1", "known are command, port"),
        ("[limits]\nmemry = '64m'", "did you mean limits.memory?"),
        ("[limits]\ncpu = 1", "did you mean limits.cpus?"),
        ("[limit]\ncpus = 1", "did you mean limits?"),
        ("'a\\u001b[2J' = 1", "known are"),
        ('"\\u001b[2J" = 1', "known are"),
    ],
)
def test_unknown_keys_come_with_a_suggestion(app: Path, line: str, suggestion: str) -> None:
    assert suggestion in refused(app, f"command = ['true']\n{line}\n")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no command"),
        ("command = 'python3 server.py'", "list"),
        ("command = []", "empty list"),
        ("command = [1]", "command[0]"),
        ("command = ['a', ['b']]", "command[1]"),
        ("command = ['']", "empty"),
        ('command = ["a\\u0000b"]', "NUL"),
        ("command = ['a']\nport = '80'", "not an integer"),
        ("command = ['a']\nport = true", "not an integer"),
        ("command = ['a']\nport = 80.0", "not an integer"),
        ("command = ['a']\nport = 0", "65535"),
        ("command = ['a']\nport = 65536", "65535"),
        ("command = ['a']\nport = 1979-05-27", "date"),
        ("command = ['a']\nready_path = 'healthz'", "not the path of an HTTP request"),
        ('command = ["a"]\nready_path = "/a\\r\\nX: y"', "not the path of an HTTP request"),
        ("command = ['a']\nready_path = 1", "not a string"),
        ("command = ['a']\nworkdir = 'app'", "absolute"),
        ("command = ['a']\nworkdir = '/app/../etc'", "'..'"),
        ("command = ['a']\nfiles = 'server.py'", "list"),
        ("command = ['a']\nfiles = []", "empty list"),
        ("command = ['a']\nfiles = ['/etc/passwd']", "relative"),
        ("command = ['a']\nfiles = ['../x']", "relative"),
        ("command = ['a']\nfiles = ['a/../../x']", "relative"),
        ("command = ['a']\nfiles = ['']", "relative"),
        ('command = ["a"]\nfiles = ["a\\u0000"]', "relative"),
        ("command = ['a']\nfiles = ['**/**/**/x']", "relative"),
        ("command = ['a']\nfiles = [" + "'x'," * 257 + "]", "257"),
        ("command = ['a']\nenv = ['A=1']", "table"),
        ("command = ['a']\n[env]\nA = 1", "not a string"),
        ("command = ['a']\n[env]\n1A = 'x'", "variable"),
        ('command = ["a"]\n[env]\nA = "x\\ny"', "line break"),
        ('command = ["a"]\n[env]\nA = "x\\u0000"', "NUL"),
        ("command = ['a']\nlimits = 1", "table"),
        ("command = ['a']\n[limits]\nmemory = true", "limits.memory"),
        ("command = ['a']\n[limits]\nmemory = 1.5", "limits.memory"),
        ("command = ['a']\n[limits]\ncpus = [1]", "limits.cpus"),
        ("command = ['a']\n[limits]\npids = '64'", "limits.pids"),
        ("command = ['a'", "not TOML"),
        ("command = ['a']\ncommand = ['b']", "not TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "not TOML"),
        ("command = ['" + "a" * 70000 + "']", "at most 65536"),
    ],
)
def test_what_makes_no_sense(app: Path, text: str, word: str) -> None:
    assert word in refused(app, text)


def test_not_utf8(app: Path) -> None:
    assert "UTF-8" in refused(app, b"command = ['caf\xe9']")
    assert "UTF-8" in refused(app, "command = ['a']".encode("utf-16"))


def test_a_gigabyte_is_not_read(app: Path) -> None:
    with (app / "sandbox.toml").open("wb") as stream:
        stream.truncate(1024**3)
    began = time.process_time()
    with pytest.raises(SpecError, match="1073741824 bytes"):
        application.load(app)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "link", "device"])
def test_no_regular_file(app: Path, kind: str) -> None:
    place = app / "sandbox.toml"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(place))
    elif kind == "directory":
        place.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("making a device file takes root")
        os.mknod(place, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends
    else:
        (app / "real").write_text("command = ['true']", encoding="utf-8")
        place.symlink_to("real")
    with pytest.raises(SpecError) as caught:
        application.load(app)
    assert str(caught.value).isprintable()


def test_no_directory_or_nothing_in_it(app: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no sandbox\.toml"):
        application.load(app)
    with pytest.raises(NotFoundError, match="no directory"):
        application.load(app / "nothing")
    (app / "file").touch()
    with pytest.raises(SpecError, match="Not a directory"):
        application.load(app / "file")
    with pytest.raises(SpecError):
        application.load("a\0b")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_content_crashes_it(app: Path, content: bytes) -> None:
    (app / "sandbox.toml").write_bytes(content)
    said = ""
    try:
        application.load(app)
    except SandboxError as error:
        said = str(error)
    assert "\n" not in said
