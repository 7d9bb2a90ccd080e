"""The Python interface and the pytest plugin, on real sandboxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import sandbox
from sandbox.isolation import LEVELS
from tests.verbs import Manager

ROOT = Path(__file__).resolve().parents[2]

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.level("namespace")


def fetch(url: str | None) -> bytes:
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as reply:
        return bytes(reply.read().strip())


@pytest.mark.parametrize("level", [pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def test_the_whole_of_it_at_every_level(level: str) -> None:
    with sandbox.run("reactor", isolation=level, memory="128m", env={"A": "1"}) as box:
        assert fetch(box.url) == b"hello"
        script = "import os;print(os.getuid());open('/tmp/there','w').write('x')"
        assert box.exec(["python3", "-c", script]).stdout.strip() == b"10001"
        assert box.exec(["python3", "-c", "print(open('/tmp/there').read())"]).stdout.strip() == b"x"
        assert box.exec(["python3", "-c", "raise SystemExit(3)"]).exit_code == 3
        assert box.running
        assert box.state.pid
        assert (box.isolation, box.spec.memory) == (level, 128 * 1024 * 1024)
        assert box.name.startswith("reactor-")
        assert list(box.startup) == ["prepare", "create", "boot", "start", "first_reply"]
        stats = box.stats()
        assert stats.memory is None or stats.memory > 0
        assert sandbox.get(box.name).id == box.id == sandbox.get(box.id[:8]).id
        assert box.id in [one.id for one in sandbox.list()]
        deadline = time.monotonic() + 10
        while not (text := box.logs()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert b"8080" in text
        assert box.logs(tail=1).count(b"\n") <= 1
        with pytest.raises(sandbox.BusyError):
            box.remove()
        assert box.stop() in (0, None)
        assert not box.running
        ident = box.id
    with pytest.raises(sandbox.NotFoundError):
        sandbox.get(ident)
    box.remove()


def test_numbers_where_flags_take_text() -> None:
    with sandbox.run(
        ["python3", "-m", "http.server", "--bind", "@listen@", "8000"], port=8000, cpus=0.5, memory=96 * 1024 * 1024
    ) as box:
        assert b"Directory listing" in fetch(box.url)
        limits = Manager().get(box.id).sandbox.limits()
        assert (limits.cpus, limits.memory) == (0.5, 96 * 1024 * 1024)


def test_a_command_without_a_port() -> None:
    with sandbox.run(["sh", "-c", "echo said; exit 5"]) as box:
        assert box.url is None
        assert box.wait(30) == 5
        assert box.logs() == b"said\n"
        assert b"".join(box.follow()) == b"said\n"


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "sandbox.toml").write_text(
        "command = ['python3', '-m', 'http.server', '8000']\nport = 8000\n", encoding="utf-8"
    )
    (tmp_path / "index.html").write_text("mine", encoding="ascii")
    with sandbox.run(tmp_path) as box:
        assert fetch(box.url) == b"mine"


def shown(name: str) -> tuple[bool, bool]:
    """Whether `sandbox ps` has it running, and paused."""
    done = subprocess.run(
        [sys.executable, "-m", "sandbox", "ps", "--format", "json"], cwd=ROOT, capture_output=True, check=True
    )
    (found,) = [one for one in json.loads(done.stdout) if one["name"] == name]
    return found["running"], found["paused"]


def test_a_pause_from_the_shell_is_seen_and_ended() -> None:
    with sandbox.run("reactor") as box:
        subprocess.run([sys.executable, "-m", "sandbox", "pause", box.name], cwd=ROOT, capture_output=True, check=True)
        assert box.state.paused
        box.unpause()
        assert shown(box.name) == (True, False)
        assert fetch(box.url) == b"hello"


def test_pause_and_kill() -> None:
    with sandbox.run("reactor") as box:
        box.pause()
        assert box.state.paused
        assert shown(box.name) == (True, True), "what one interface does, the other sees"
        box.unpause()
        assert shown(box.name) == (True, False)
        assert fetch(box.url) == b"hello"
        box.kill(9)
        assert box.wait(10) == 137


def test_it_outlives_its_maker_only_where_asked() -> None:
    script = (
        "import os, sandbox\nbox = sandbox.run('reactor', name={!r}, detach={})\nprint(box.id, flush=True)\nos._exit(0)"
    )
    idents = {}
    for detach in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", script.format(f"api-detach-{detach}".lower(), detach)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        idents[detach] = done.stdout.strip()
    try:
        Manager().prune()
        assert fetch(sandbox.get(idents[True]).url) == b"hello"
        with pytest.raises(sandbox.NotFoundError):
            sandbox.get(idents[False])
    finally:
        sandbox.get(idents[True]).remove(force=True)


def test_errors_are_of_one_family() -> None:
    attempts: tuple[tuple[Callable[[], object], type[sandbox.SandboxError]], ...] = (
        (lambda: sandbox.run("nonesuch"), sandbox.NotFoundError),
        (lambda: sandbox.run("reactor", isolation="jail"), sandbox.NotFoundError),
        (lambda: sandbox.run("reactor", memory="lots"), sandbox.SpecError),
        (lambda: sandbox.run("reactor", cpus=float("nan")), sandbox.SpecError),
        (lambda: sandbox.run("reactor", env={"A": "b\nc"}), sandbox.SpecError),
        (lambda: sandbox.run("reactor", volumes=["/:/x"]), sandbox.SpecError),
        (lambda: sandbox.run(["/no/such/command"], port=80), sandbox.SandboxError),
        (lambda: sandbox.get("nobody"), sandbox.NotFoundError),
    )
    for act, kind in attempts:
        with pytest.raises(kind) as caught:
            act()
        assert isinstance(caught.value, sandbox.SandboxError)
        assert caught.value.message


def test_the_import_is_cheap_and_typed(tmp_path: Path) -> None:
    code = "import sys, sandbox; print(sorted(m for m in sys.modules if m.startswith('sandbox')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sandbox']"
    assert (ROOT / "sandbox" / "py.typed").exists()
    assert set(sandbox.__all__) <= set(dir(sandbox))
    for name in sandbox.__all__:
        assert getattr(sandbox, name) is not None
    with pytest.raises(AttributeError):
        sandbox.nonesuch  # type: ignore[attr-defined] # noqa: B018


class TestThePlugin:
    """Each test runs pytest in a process of its own, as its users would."""

    @pytest.fixture(autouse=True)
    def alone(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        # The plugin by its name and no other: the same whether its entry point is installed here or not.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("SANDBOX_MUST_WORK", raising=False)
        self._pytester = pytester

    def _run(self, *argv: str) -> pytest.RunResult:
        return self._pytester.runpytest_subprocess("-p", "sandbox.pytest_plugin", *argv)

    def test_a_server_behind_a_wall(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import urllib.request, pytest

            made = []

            def test_two_at_once(sandbox):
                one, other = sandbox("reactor"), sandbox(["python3", "-m", "http.server", "8000"], port=8000)
                made.extend([one, other])
                assert one.isolation == "namespace"
                for box in (one, other):
                    assert urllib.request.urlopen(box.url, timeout=10).status == 200
                other.remove(force=True)

            def test_they_are_gone():
                import sandbox
                for box in made:
                    with pytest.raises(sandbox.NotFoundError):
                        sandbox.get(box.id)

            @pytest.fixture(scope="session")
            def shared(sandbox_session):
                return sandbox_session("reactor", memory="64m")

            @pytest.mark.parametrize("turn", [1, 2])
            def test_shared(shared, turn):
                made.append(shared)
                assert len({box.id for box in made[2:]}) == 1
                assert urllib.request.urlopen(shared.url, timeout=10).status == 200
            """
        )
        self._run("-q").assert_outcomes(passed=4)

    @pytest.mark.level("process")
    def test_the_option_says_the_level(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            def test_it(sandbox):
                assert sandbox().isolation == "process"
                assert sandbox(isolation="namespace").isolation == "namespace"
            """
        )
        self._run("--sandbox-isolation", "process").assert_outcomes(passed=1)
        self._run("--sandbox-isolation", "jail").assert_outcomes(failed=1)

    def test_a_level_that_is_lacking_skips_or_fails(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytester.makeconftest(
            """
            from sandbox.errors import UnavailableError
            from sandbox.lifecycle import start

            def refuse(level):
                raise UnavailableError(f"{level.name} is not available on this host: no such thing", "buy one")

            start._refuse_missing = refuse
            """
        )
        pytester.makepyfile("def test_it(sandbox):\n    sandbox('reactor')\n")
        found = self._run("-rs")
        found.assert_outcomes(skipped=1)
        found.stdout.fnmatch_lines(["*SKIPPED*no such thing (buy one)*"])
        for value, outcome in (("vm", "skipped"), ("vm,namespace", "failed"), ("all", "failed")):
            monkeypatch.setenv("SANDBOX_MUST_WORK", value)
            self._run().assert_outcomes(**{outcome: 1})

    def test_a_failure_shows_the_log_and_removes_it(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import time

            def test_it(sandbox):
                box = sandbox(["sh", "-c", "echo said so; sleep 60"], name="api-plugin-fails")
                while b"said" not in box.logs():
                    time.sleep(0.05)
                assert False
            """
        )
        found = self._run()
        found.assert_outcomes(failed=1)
        found.stdout.fnmatch_lines(["*sandbox api-plugin-fails (namespace) log*", "said so"])
        with pytest.raises(sandbox.NotFoundError):
            sandbox.get("api-plugin-fails")

    def test_it_loads_no_engine(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import sys

            def test_it(request):
                loaded = {name for name in sys.modules if name.startswith("sandbox")}
                assert loaded == {"sandbox", "sandbox.pytest_plugin"}
                assert not {"docker", "libvirt", "paramiko", "pyroute2"} & set(sys.modules)
            """
        )
        self._run().assert_outcomes(passed=1)

    def test_the_entry_point_names_it(self) -> None:
        with (ROOT / "pyproject.toml").open("rb") as stream:
            points = tomllib.load(stream)["project"]["entry-points"]["pytest11"]
        assert points == {"sandbox": "sandbox.pytest_plugin"}
        assert hasattr(import_module(points["sandbox"]), "pytest_addoption")
        assert os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] == "1"
