"""`sandbox images`: output on stdout and stderr, JSON types, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sandbox import images
from sandbox.cli.images import Steps, command
from sandbox.errors import BusyError, NotFoundError, SandboxError
from sandbox.images import cache, workspace
from sandbox.images.recipe import Form, Stage, digests
from sandbox.state import paths


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    paths.images_dir().mkdir(parents=True)


def make(stage: Stage, digest: str) -> cache.Entry:
    with workspace.workspace(0) as space:
        (space.result / cache.CONTENT).mkdir()
        return cache.commit(space, stage, digest, [])


def test_ls_as_json_has_fixed_types() -> None:
    entry = make(Stage.ROOTFS, digests()[Stage.ROOTFS])
    done = CliRunner().invoke(command, ["ls", "--format", "json"], catch_exceptions=False)
    (row,) = json.loads(done.stdout)
    assert {key: type(value).__name__ for key, value in row.items()} == {
        "form": "str",
        "digest": "str",
        "size": "int",
        "created": "float",
        "current": "bool",
        "damage": "NoneType",
        "path": "str",
        "reference": "NoneType",
    }
    assert row["digest"] == entry.digest
    assert row["current"] is True
    assert "images in Docker are not listed" in done.stderr


def test_ls_of_nothing() -> None:
    assert json.loads(CliRunner().invoke(command, ["ls", "--format", "json"]).stdout) == []
    assert CliRunner().invoke(command, ["ls"]).stdout.startswith("FORM")


def test_ls_as_table() -> None:
    make(Stage.VM, "1" * 64)
    header, row = CliRunner().invoke(command, ["ls"]).stdout.splitlines()
    assert header.split() == ["FORM", "DIGEST", "SIZE", "CREATED", "STATE", "WHERE"]
    assert row.split()[:2] == ["vm", "1" * 12]
    assert " old " in row


def test_path() -> None:
    done = CliRunner().invoke(command, ["path"])
    assert isinstance(done.exception, NotFoundError)
    assert "sandbox images build rootfs" in str(done.exception)
    entry = make(Stage.ROOTFS, digests()[Stage.ROOTFS])
    assert CliRunner().invoke(command, ["path"]).stdout == f"{entry.path}\n"


def test_rm() -> None:
    assert CliRunner().invoke(command, ["rm"]).exit_code == 2
    make(Stage.VM, "1" * 64)
    done = CliRunner().invoke(command, ["rm", "--dry-run", "1111"])
    assert done.stdout == f"would remove image vm-{'1' * 12}\n"
    assert CliRunner().invoke(command, ["rm", "1111"]).stdout == f"removed image vm-{'1' * 12}\n"
    assert "nothing to remove" in CliRunner().invoke(command, ["rm", "--all"]).stderr


def test_rm_of_what_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    make(Stage.VM, "1" * 64)
    monkeypatch.setattr("sandbox.images.usage.users", lambda _: ["sandbox web-1"])
    for arguments in (["rm", "1111"], ["rm", "--all"]):
        done = CliRunner().invoke(command, arguments)
        assert isinstance(done.exception, BusyError)
        assert "in use by sandbox web-1" in str(done.exception)
    done = CliRunner().invoke(command, ["rm", "--old"])  # an image in use is not an error here
    assert done.exit_code == 0
    assert done.stderr.startswith("kept: vm-1111")


def test_verify() -> None:
    entry = make(Stage.VM, "1" * 64)
    assert CliRunner().invoke(command, ["verify"]).exit_code == 0
    (entry.path / "more").write_text("x")
    done = CliRunner().invoke(command, ["verify"])
    assert done.exit_code == 1
    assert done.stdout == f"vm-{'1' * 12}: more was added\n"


def test_build_goes_on_after_a_form_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(form: Form, progress: Callable[[str], None]) -> images.Image:
        progress("working")
        if form is Form.DOCKER:
            raise SandboxError("no daemon", "start one")
        return images.Image(form, "1" * 64, Path("/somewhere"), None, 1)

    monkeypatch.setattr(images, "ensure", ensure)
    done = CliRunner().invoke(command, ["build"])
    assert done.stdout.splitlines() == [f"rootfs {'1' * 12} /somewhere", f"vm {'1' * 12} /somewhere"]
    assert done.stderr == "working\n" * 3
    assert str(done.exception) == "no daemon (start one)"


def test_an_unknown_form_is_refused() -> None:
    done = CliRunner().invoke(command, ["build", "floppy"])
    assert done.exit_code == 2
    assert "'rootfs', 'docker', 'vm'" in done.stderr


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Steps() as steps:
        steps("first")
        steps("second")
    written = capsys.readouterr().err
    assert "\n" not in written
    assert "\rfirst" in written
    assert written.endswith("\r")
