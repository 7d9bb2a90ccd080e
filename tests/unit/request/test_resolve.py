"""Resolving targets and options to a spec, and which source of a setting overrides which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import NotFoundError, SandboxError, SpecError
from sandbox.request import resolve
from sandbox.request.resolve import Options
from sandbox.spec import DEFAULT_DISK, DEFAULT_MEMORY, DEFAULT_PORT, MIB, NAME_PATTERN, Publish, SandboxSpec


@pytest.fixture
def app(tmp_path: Path) -> Path:
    directory = tmp_path / "My App!"
    directory.mkdir()
    (directory / "sandbox.toml").write_text(
        "command = ['python3', 'server.py']\nport = 8000\nready_path = '/ready'\n"
        "[env]\nA = 'file'\nB = 'file'\n[limits]\ncpus = 0.5\nmemory = '64m'\npids = 32\ndisk = '8m'\n",
        encoding="utf-8",
    )
    return directory


def spec(target: resolve.Target, **options: Any) -> SandboxSpec:
    return resolve.make(target, "namespace", Options(**options)).spec


def refused(target: resolve.Target, **options: Any) -> str:
    with pytest.raises(SandboxError) as caught:
        spec(target, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_workload() -> None:
    one = spec("reactor")
    assert one.workload == "reactor"
    assert one.name.startswith("reactor-")
    assert (one.port, one.ready_path, one.workdir, one.app) == (DEFAULT_PORT, "/healthz", "/", False)
    assert "reactor" in one.argv
    assert "--port" in refused("reactor", port=80)


def test_a_command() -> None:
    one = spec(["/usr/bin/Python3", "-m", "http.server"])
    assert one.argv == ("/usr/bin/Python3", "-m", "http.server")
    assert one.workload == "Python3"
    assert one.name.startswith("python3-")
    assert (one.port, one.workdir) == (None, "/")
    one = spec(["x"], port=80, ready_path="/ok", workdir="/tmp/")
    assert (one.port, one.ready_path, one.workdir) == (80, "/ok", "/tmp")


@pytest.mark.parametrize("argv", [["\x1b[2J"], ["a" * 200], ["..."], ["/"], ["日本"]])
def test_any_command_gets_a_legal_name(argv: list[str]) -> None:
    one = spec(argv)
    assert NAME_PATTERN.fullmatch(one.name)
    assert one.workload.isprintable()


@pytest.mark.parametrize("argv", [[], [""], ["a\0"], [b"a"], [1]])
def test_a_command_that_is_none(argv: list[Any]) -> None:
    assert refused(argv)


def test_a_directory(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve.make(app, "namespace")
    assert found.application is not None
    assert found.application.directory == app
    one = found.spec
    assert one.workload == "My App!"
    assert one.name.startswith("my-app-")
    assert one.argv == ("python3", "server.py")
    assert (one.port, one.ready_path, one.workdir, one.app) == (8000, "/ready", "/app", True)
    assert (one.cpus, one.memory, one.pids_limit, one.disk) == (0.5, 64 * MIB, 32, 8 * MIB)
    assert dict(one.env) == {"A": "file", "B": "file"}
    monkeypatch.chdir(app)
    assert spec(".").workload == "My App!"
    monkeypatch.chdir(app.parent)
    assert spec("./My App!").app
    assert spec("My App!/").app


def test_flags_stand_above_the_file(app: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("B=lines\nC=lines\nD=lines\n", encoding="utf-8")
    one = spec(
        app, cpus="0.25", memory="32m", pids_limit=16, disk="4m", port=9, ready_path="/", workdir="/app/x",
        env=["C=flag"], env_file=[str(lines)], name="web",
    )  # fmt: skip
    assert (one.cpus, one.memory, one.pids_limit, one.disk) == (0.25, 32 * MIB, 16, 4 * MIB)
    assert (one.port, one.ready_path, one.workdir, one.name) == (9, "/", "/app/x", "web")
    assert dict(one.env) == {"A": "file", "B": "lines", "C": "flag", "D": "lines"}


def test_limits_of_a_file_are_checked_as_flags_are(app: Path) -> None:
    toml = app / "sandbox.toml"
    for line, word in (
        ("memory = '1m'", "limits.memory"),
        ("memory = '900000t'", "more than this host has"),
        ("cpus = nan", "limits.cpus"),
        ("cpus = inf", "limits.cpus"),
        ("cpus = -1", "limits.cpus"),
        ("cpus = 100000", "more than this host"),
        ("pids = -1", "limits.pids"),
        ("disk = '999g'", "limits.disk"),
    ):
        toml.write_text(f"command = ['x']\n[limits]\n{line}\n", encoding="utf-8")
        assert word in refused(app)


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert "sandbox run ./mine" in refused("mine")
    assert "no sandbox.toml" in refused("./mine")
    assert "reactor" in refused("nothing")
    assert "no directory" in refused("./nothing")
    assert "no sandbox.toml" in refused(".")


def test_what_is_written_is_limited_by_memory() -> None:
    assert spec("reactor").disk == DEFAULT_DISK
    assert spec("reactor").memory == DEFAULT_MEMORY
    assert spec("reactor", memory="32m").disk == 16 * MIB
    assert spec("reactor", memory="32m", disk="32m").disk == 32 * MIB
    assert "--disk" in refused("reactor", memory="32m", disk="33m")


def test_levels() -> None:
    with pytest.raises(NotFoundError, match="namespace"):
        resolve.make("reactor", "jail\x1b")


def test_files_of_the_environment(tmp_path: Path) -> None:
    assert "No such file" in refused("reactor", env_file=[str(tmp_path / "nothing")])
    assert "regular file" in refused("reactor", env_file=[str(tmp_path)])
    assert "regular file" in refused("reactor", env_file=["/dev/zero"])
    (tmp_path / "bad").write_bytes(b"A=\xff")
    assert "UTF-8" in refused("reactor", env_file=[str(tmp_path / "bad")])
    (tmp_path / "big").write_bytes(b"#" * (resolve.MAX_ENV_FILE + 1))
    assert "larger" in refused("reactor", env_file=[str(tmp_path / "big")])


def test_what_python_callers_may_pass() -> None:
    found = resolve.options_of(
        {"cpus": 0.5, "memory": 64 * MIB, "env": {"A": "1"}, "publish": {8000: 80}, "volumes": [Path("/a:/b")],
         "port": None, "name": None}
    )  # fmt: skip
    assert found == Options(cpus="0.5", memory=str(64 * MIB), env=("A=1",), publish=("8000:80",), volumes=("/a:/b",))
    one = spec("reactor", **{"cpus": "0.5", "publish": ["8000:80"]})
    assert one.publish == (Publish(8000, 80),)


@pytest.mark.parametrize(
    "values",
    [{"nonesuch": 1}, {"env": "A=1"}, {"env": 1}, {"port": "80"}, {"port": True}, {"pids_limit": 1.5}, {"memory": True},
     {"memory": [1]}, {"name": 5j}, {"volumes": b"x"}],
)  # fmt: skip
def test_what_python_callers_may_not_pass(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        resolve.options_of(values)
    assert caught.value.hint


def test_floats_that_are_no_numbers() -> None:
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(SpecError):
            resolve.make("reactor", "namespace", resolve.options_of({"cpus": value}))
