"""`sandbox doctor` on this host, and a second Docker daemon from start to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.cli.doctor import EXIT_INCOMPLETE
from sandbox.host import daemons, docker, docker_check, dockerd
from sandbox.host.checks import CHECKS, EXTRAS
from sandbox.host.docker import Engine
from sandbox.host.programs import which
from sandbox.isolation import LEVELS
from sandbox.state import paths


def _doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", "doctor", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _types(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and set(value) == set(shape) and all(_types(value[k], shape[k]) for k in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_types(item, shape[0]) for item in value)
    return type(value) is shape


SHAPE = {
    "version": int,
    "host": {"distribution": str, "kernel": str, "machine": str, "boot_id": str, "cgroups": str, "init": str},
    "levels": [{"level": str, "available": bool, "missing": [{"what": str, "reason": str, "remedy": str}]}],
    "extras": [{"extra": str, "available": bool, "missing": [{"what": str, "reason": str, "remedy": str}]}],
    "notes": [{"what": str, "reason": str, "remedy": str, "without": str}],
    "checks": [{"what": str, "ok": bool, "detail": str, "remedy": str}],
}


def test_json_has_fixed_types() -> None:
    done = _doctor("--format", "json")
    found = json.loads(done.stdout)
    assert _types(found, SHAPE), found
    assert found["version"] == 1
    assert [level["level"] for level in found["levels"]] == list(LEVELS)
    assert [extra["extra"] for extra in found["extras"]] == list(EXTRAS)
    assert all(level["available"] is (not level["missing"]) for level in found["levels"])
    complete = all(level["available"] for level in found["levels"])
    assert done.returncode == (0 if complete else EXIT_INCOMPLETE)
    if os.geteuid() == 0:
        assert {check["what"] for check in found["checks"]} == set(CHECKS)


def test_the_table_has_a_row_for_each_level() -> None:
    done = _doctor()
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][:2] == ["LEVEL", "AVAILABLE"]
    assert {row[0] for row in rows if len(row) > 1 and row[1] in {"yes", "no"}} == {*LEVELS, *EXTRAS}
    assert "Traceback" not in done.stderr


def test_what_is_missing_is_explained(tmp_path: Path) -> None:
    done = _doctor("--format", "json", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    assert done.returncode == EXIT_INCOMPLETE
    levels = {level["level"]: level for level in json.loads(done.stdout)["levels"]}
    assert not levels["container"]["available"]
    if os.geteuid() == 0:
        missing = next(item for item in levels["container"]["missing"] if item["what"] == "docker.daemon")
        assert "nothing.sock does not answer" in missing["reason"]
        assert missing["remedy"]


@pytest.mark.needs("root")
def test_without_root_it_says_so_and_loses_no_row() -> None:
    # Only the interpreter's own path is used, as other users may be unable to enter the directory of the checkout.
    script = "import os; os.setgid(65534); os.setuid(65534); from sandbox.host import report as r; "
    script += "import json; print(json.dumps(r.look(needed).to_json()))"
    prelude = "import sandbox.host.report, sandbox.host.docker_check; "
    prelude += "from sandbox.isolation import requirements; needed = requirements(); "
    done = subprocess.run([sys.executable, "-c", prelude + script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert _types(found, SHAPE)
    assert {item["what"] for level in found["levels"] for item in level["missing"]} == {"root"}


def test_bad_input_is_one_clear_line() -> None:
    done = _doctor("--fix", "--stop")
    assert done.returncode != 0
    assert "cannot be used together" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs("root")
def test_a_second_fix_changes_nothing() -> None:
    if _doctor().returncode != 0:
        pytest.skip("some level is missing here: a fix would change this host")
    done = _doctor("--fix")
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["nothing to do"]


@pytest.mark.needs("root")
def test_stop_stops_only_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    process = daemons.start("sleeper", ["sleep", "600"], ready=lambda: True)
    other = subprocess.Popen(["sleep", "600"])
    try:
        done = _doctor("--stop")
        assert done.stderr.splitlines() == ["stopped sleeper"]
        assert not process.alive()
        assert other.poll() is None
        assert _doctor("--stop").stderr.splitlines() == ["nothing to stop"]
    finally:
        other.kill()
        other.wait()


@pytest.fixture
def own_dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Start a second Docker daemon that shares nothing with the host's."""
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(dockerd, "SYSTEM_CONFIG", tmp_path / "daemon.json")
    engine = Engine(f"{tmp_path}/docker.sock")
    monkeypatch.setenv("DOCKER_HOST", str(engine))
    config = tmp_path / "state" / "host" / "dockerd.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}", encoding="utf-8")
    directories = [f"--data-root={tmp_path}/data", f"--exec-root={tmp_path}/exec", f"--pidfile={tmp_path}/pid"]
    argv = ["dockerd", "--config-file", str(config), "--host", str(engine), "--bridge=none", "--iptables=false"]
    assert dockerd.own_config() == config
    daemons.start(dockerd.NAME, [*argv, *directories], ready=lambda: docker_check.daemon().ok)
    try:
        yield engine
    finally:
        assert daemons.stop(dockerd.NAME)


def _processes(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if word in command:
            found.append(command.replace("\0", " "))
    return found


@pytest.mark.slow
@pytest.mark.level("gvisor")
def test_runsc_is_registered_tried_and_judged(own_dockerd: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "DEFAULT_SOCKET", own_dockerd.socket)
    monkeypatch.setattr(dockerd, "DEFAULT_SOCKET", own_dockerd.socket)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert "does not know the runtime" in docker_check.runsc().detail

    done, advice = dockerd.register()
    assert advice is None
    assert done is not None
    assert docker_check.runsc().ok

    # The second check recalls the result, and creates no container.
    monkeypatch.setattr(docker_check, "try_runtime", lambda *_: pytest.fail("tried again"))
    assert docker_check.runsc().ok


@pytest.mark.slow
@pytest.mark.level("gvisor")
def test_a_runtime_that_does_not_work_is_not_called_working(own_dockerd: Engine) -> None:
    engine = own_dockerd
    runtimes = {
        "broken": {"path": "/bin/false"},
        "bare": {"path": which("runsc")},  # without arguments, Debian's runsc fails after its sandbox has started
    }
    dockerd._write(dockerd.own_config(), {"runtimes": runtimes})
    daemons.send(dockerd.NAME, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while "bare" not in engine.ask("GET", "/info", "x")["Runtimes"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not docker_check.try_runtime(engine, "broken").works
    owner = os.stat(os.devnull).st_uid
    docker_check.try_runtime(engine, "bare")
    assert os.stat(os.devnull).st_uid == owner, "runsc's sandbox took the host's /dev/null over"
    assert docker_check.try_runtime(engine, "runc").works
    assert engine.ask("GET", "/containers/json?all=1", "x") == []
    assert engine.ask("GET", "/images/json", "x") == []
    deadline = time.monotonic() + 10
    while _processes(f"{paths.state_dir().parent}/exec/containerd/daemon") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes(f"{paths.state_dir().parent}/exec/containerd/daemon") == []
