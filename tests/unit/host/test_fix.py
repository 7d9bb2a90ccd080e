"""`doctor --fix`: the packages and files that it would install and write, without doing it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sandbox.errors import EngineError, UnavailableError
from sandbox.host import apt, daemons, dockerd, fix, libvirt, vagrant
from sandbox.host.checks import CHECKS
from sandbox.host.distribution import Distribution
from sandbox.host.finding import Finding
from sandbox.host.sockets import listens
from sandbox.state.processid import ProcessId

needs_root = pytest.mark.needs("root")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(dockerd, "SYSTEM_CONFIG", tmp_path / "etc" / "daemon.json")
    monkeypatch.setattr(dockerd, "which", lambda _: "/usr/bin/runsc")
    return tmp_path


def test_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError) as caught:
        fix.fix({}, print)
    assert caught.value.hint == "sudo sandbox doctor --fix"


@needs_root
def test_elsewhere_it_only_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix, "distribution", lambda: Distribution("Plan 9", False))
    monkeypatch.setattr(
        fix, "lacking", lambda _: [Finding("program.nft", False, "nft is not installed", "install nft")]
    )
    monkeypatch.setattr(fix, "_packages", lambda *_: pytest.fail("it must not install"))
    outcome = fix.fix({}, print)
    assert outcome.done == []
    assert outcome.advice == ["nft is not installed: install nft"]


@needs_root
def test_a_step_that_fails_does_not_withhold_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise EngineError("no luck", "try again")

    def works(outcome: fix.Outcome, _: object) -> None:
        outcome.done.append("did it")

    monkeypatch.setattr(fix, "distribution", lambda: Distribution("Debian", True))
    for name in ("_packages", "_kvm_group", "_docker", "_runsc", "_libvirt"):
        monkeypatch.setattr(fix, name, fails)
    monkeypatch.setattr(fix, "_binding", works)
    said: list[str] = []
    outcome = fix.fix({}, said.append)
    assert outcome.failed == ["no luck (try again)"] * 5
    assert outcome.done == said == ["did it"]


def test_packages_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix, "which", lambda _: None)
    assert fix.wanted_packages(["program.nft", "docker.runsc", "cgroup.cpu"]) == ["nftables", "runsc"]
    assert "libvirt-daemon-log" in fix.wanted_packages(["libvirt.daemon"])
    assert fix.wanted_packages(["program.vagrant", "vagrant.libvirt"]) == ["vagrant", "vagrant-libvirt"]
    assert fix.wanted_packages(["program.dnsmasq"])[0] == "dnsmasq-base"


def test_what_vagrant_needs_is_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> Finding:
        return Finding("program.dnsmasq", False, "dnsmasq is not installed", "sandbox doctor --fix")

    monkeypatch.setitem(CHECKS, "program.dnsmasq", absent)
    assert "program.dnsmasq" in [finding.name for finding in fix.lacking({})]


def test_debians_plugin_is_not_for_the_makers_vagrant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vagrant, "which", lambda _: "/opt/vagrant/bin/vagrant")
    assert fix.wanted_packages(["vagrant.libvirt"]) == []


def test_a_daemon_that_is_installed_but_off_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix, "which", lambda name: f"/usr/bin/{name}")
    assert fix.wanted_packages(["docker.daemon", "docker.runsc", "libvirt.daemon"]) == []


def test_the_binding_is_built_where_the_interpreter_is_not_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/venv")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    assert fix.wanted_packages(["python.libvirt"]) == ["gcc", "pkg-config", "libvirt-dev", version]
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    assert version not in fix.wanted_packages(["python.libvirt"])
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert fix.wanted_packages(["python.libvirt"]) == ["python3-libvirt"]


def test_our_runtime_joins_somebodys_configuration() -> None:
    theirs = {"log-level": "warn", "runtimes": {"kata": {"path": "/usr/bin/kata"}}}
    assert dockerd.merged(theirs) == {
        "log-level": "warn",
        "runtimes": {
            "kata": {"path": "/usr/bin/kata"},
            "runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=host"]},
        },
    }
    assert theirs["runtimes"] == {"kata": {"path": "/usr/bin/kata"}}, "theirs is left as it is"
    mine = {"runtimes": {"runsc": {"path": "/opt/runsc"}}}
    assert dockerd.merged(mine) == mine, "what they say of it wins"


def test_without_runsc_there_is_nothing_to_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dockerd, "which", lambda _: None)
    assert dockerd.merged({}) == {}


def test_an_existing_configuration_is_not_touched(state: Path) -> None:
    config = state / "etc" / "daemon.json"
    config.parent.mkdir()
    config.write_text('{"debug": true}\n', encoding="utf-8")
    done, advice = dockerd.register()
    assert done is None
    assert advice is not None
    assert '"runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=host"]}' in advice
    assert config.read_text(encoding="utf-8") == '{"debug": true}\n'


def test_a_configuration_that_was_not_heeded_is_said_to_need_a_reload(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = state / "etc" / "daemon.json"
    config.parent.mkdir()
    config.write_text('{"runtimes": {"runsc": {"path": "/opt/runsc"}}}\n', encoding="utf-8")
    pid = state / "docker.pid"
    pid.write_text(str(os.getpid()), encoding="ascii")
    monkeypatch.setattr(dockerd, "SYSTEM_PID", pid)
    with pytest.raises(EngineError, match="does not name a dockerd"):
        dockerd.register()


def test_anothers_daemon_is_not_touched(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///elsewhere.sock")
    done, advice = dockerd.register()
    assert done is None
    assert "unix:///elsewhere.sock" in (advice or "")
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    with pytest.raises(UnavailableError, match="tcp://elsewhere:2375"):
        dockerd.register()
    assert not (state / "etc").exists()


@pytest.mark.parametrize("host", ["unix:///elsewhere.sock", "tcp://elsewhere:2375"])
def test_anothers_daemon_is_not_started(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(fix, "which", lambda _: "/usr/sbin/dockerd")
    monkeypatch.setattr(dockerd, "start", lambda: pytest.fail("started"))
    outcome = fix.Outcome()
    fix._docker(outcome, print)
    assert outcome.done == []
    assert [host in line for line in outcome.advice] == [True]


@pytest.mark.parametrize("text", ["{half", "[]"])
def test_a_damaged_configuration_is_said(state: Path, text: str) -> None:
    config = state / "etc" / "daemon.json"
    config.parent.mkdir()
    config.write_text(text, encoding="utf-8")
    with pytest.raises(EngineError, match=r"daemon\.json"):
        dockerd.start()


def test_configurations_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "daemon.json"
    dockerd._write(path, {"a": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["daemon.json"]


def test_a_socket_that_outlived_its_daemon_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert not listens(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not listens(path)
        server.listen()
        assert listens(path)
    assert path.is_socket()
    assert not listens(path)


def test_libvirt_without_its_log_daemon_is_not_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    virsh = tmp_path / "virsh"
    virsh.write_text("#!/bin/sh\necho 'Running hypervisor: QEMU 7.2.0'\n", encoding="ascii")
    virsh.chmod(0o755)
    monkeypatch.setattr(libvirt, "which", lambda _: str(virsh))
    monkeypatch.setattr(libvirt, "VIRTLOGD_SOCKET", tmp_path / "virtlogd-sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(libvirt.VIRTLOGD_SOCKET))
        found = libvirt.daemon()
        assert not found.ok
        assert "virtlogd does not answer" in found.detail
        server.listen()
        assert libvirt.daemon().ok


def test_it_is_started_beside_a_libvirtd_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[str] = []
    monkeypatch.setattr(fix, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(fix, "systemd", lambda: False)
    monkeypatch.setattr(libvirt, "VIRTLOGD_SOCKET", tmp_path / "virtlogd-sock")
    monkeypatch.setattr(libvirt, "daemon", lambda: Finding("libvirt.daemon", bool(started), ""))

    def start(name: str, *_: object, **__: object) -> ProcessId:
        started.append(name)
        return ProcessId(4242, 1, "boot")

    monkeypatch.setattr(daemons, "start", start)
    outcome = fix.Outcome()
    fix._libvirt(outcome, lambda _: None)
    assert started == ["virtlogd"]
    assert len(outcome.done) == 1


@pytest.mark.parametrize("content", ["4194399\n", "1\n", "zombie", "rubbish"])
def test_pid_files_of_others_are_swept_before_a_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    """Pid files of no process, of one with another name, of a zombie, and without a number."""
    ended = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    stale, living = tmp_path / "stale", tmp_path / "living"
    stale.write_text(content.replace("zombie", str(ended.pid)), encoding="ascii")
    living.write_text(str(os.getpid()), encoding="ascii")
    monkeypatch.setattr(dockerd, "SYSTEM_PID", stale)
    monkeypatch.setattr(dockerd, "NAME", "true")
    monkeypatch.setattr(dockerd, "CONTAINERD_PID", living)
    dockerd._sweep()
    assert not stale.exists()
    assert not living.exists(), "it is not containerd's"
    living.write_text(str(os.getpid()), encoding="ascii")
    monkeypatch.setattr(dockerd, "SYSTEM_PID", living)
    monkeypatch.setattr(dockerd, "NAME", Path("/proc/self/comm").read_text(encoding="utf-8").strip())
    monkeypatch.setattr(dockerd, "CONTAINERD_PID", tmp_path / "none")
    dockerd._sweep()
    assert living.exists()
    ended.wait()


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(apt, "POLICY", path)
    monkeypatch.setattr(apt, "systemd", lambda: False)
    return path


def test_no_service_is_started_during_an_installation(policy: Path) -> None:
    with apt.no_service_starts():
        assert stat.S_IMODE(policy.stat().st_mode) == 0o755
        assert os.system(str(policy)) >> 8 == 101  # "action forbidden by policy", invoke-rc.d(8)
    assert not policy.exists()


def test_it_is_removed_after_a_failure_too(policy: Path) -> None:
    with pytest.raises(EngineError), apt.no_service_starts():
        raise EngineError("no luck")
    assert not policy.exists()


def test_one_that_a_killed_installation_left_is_ours(policy: Path) -> None:
    policy.write_text(apt._POLICY_TEXT, encoding="ascii")
    with apt.no_service_starts():
        assert policy.exists()
    assert not policy.exists()


def test_somebodys_policy_stays(policy: Path) -> None:
    policy.write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
    with apt.no_service_starts():
        assert policy.read_text(encoding="ascii") == "#!/bin/sh\nexit 0\n"
    assert policy.exists()


def test_systemd_starts_its_own(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "systemd", lambda: True)
    with apt.no_service_starts():
        assert not policy.exists()


def _apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Sequence[str], code: int) -> None:
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    said = "\n".join(f"echo '{line}'" for line in lines)
    program.write_text(f"#!/bin/sh\n{said}\nexit {code}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_apt_get_is_quoted_when_it_fails(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_get(tmp_path, monkeypatch, ["Reading package lists...", "E: Unable to locate package nft"], 100)
    with pytest.raises(EngineError, match="Unable to locate package nft"):
        apt.install(["nft"], lambda _: None)
    assert not policy.exists()


def test_progress_is_shown(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_get(tmp_path, monkeypatch, ["Reading package lists...", "Setting up nftables (1.0.6) ..."], 0)
    said: list[str] = []
    apt.install(["nftables"], said.append)
    assert said == ["apt-get install nftables", "Setting up nftables (1.0.6) ..."]
    assert not policy.exists()
