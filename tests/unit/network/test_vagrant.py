"""Vagrant's network and the machines of a comparison: order, and that nothing stays. The programs are scripted."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import host
from sandbox.errors import BusyError, EngineError, SpecError, UnavailableError
from sandbox.images import vagrant as box
from sandbox.kernel import nftables
from sandbox.measure import load
from sandbox.measure import vagrant as machines
from sandbox.network import vagrant
from sandbox.state import paths

VAGRANT = """#!/bin/sh
echo "vagrant $1" >>"$CALLS"
case $1-$MOOD in
up-refuses) touch "$DOMAIN"; echo 'no such luck'; exit 1 ;;
up-hangs)
    touch "$DOMAIN"
    trap 'echo interrupted >>"$CALLS"; kill $sleeper; exit 1' INT
    sleep 60 & sleeper=$!
    echo hangs >>"$CALLS"
    wait ;;
up-*) touch "$DOMAIN"; echo '==> default:  -- Domain type:       qemu' ;;
destroy-forgot) ;;
destroy-fails) echo 'it is locked' >&2; exit 1 ;;
destroy-*) rm -f "$DOMAIN" ;;
esac
"""
VIRSH = """#!/bin/sh
shift 3
echo "virsh $*" >>"$CALLS"
case $1 in
list) [ ! -e "$DOMAIN" ] || echo sandbox-compare_default ;;
domifaddr) echo ' vnet0  52:54:00:1c:54:cb  ipv4  198.19.121.44/24' ;;
undefine) rm -f "$DOMAIN" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was called so far, of Vagrant and of virsh, but for virsh's plain questions."""
    programs, log = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    for name, text in (("vagrant", VAGRANT), ("virsh", VIRSH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.setenv("DOMAIN", str(tmp_path / "domain"))
    monkeypatch.setenv("MOOD", "well")
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(box, "ensure", lambda _: None)
    monkeypatch.setattr(host, "kvm_works", lambda: False)
    monkeypatch.setattr(load, "fetch", lambda *_args, **_kwargs: (200, b"hello"))
    monkeypatch.setattr(nftables, "table_exists", lambda *_: False)
    questions = ("virsh list", "virsh net-list", "virsh domifaddr", "virsh vol-list")
    return lambda: [line for line in log.read_text().splitlines() if not line.startswith(questions)]


def test_a_machine_is_up_for_a_block(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    with machines.project(0, lambda _: None) as project:
        with project.machine() as machine:
            assert (machine.address, machine.port, machine.emulated) == ("198.19.121.44", 8080, True)
            assert machine.startup > 0
            assert calls() == ["vagrant up"]
        assert calls() == ["vagrant up", "vagrant destroy"]
        assert (paths.vagrant_dir() / "Vagrantfile").resolve() == machines.VAGRANTFILE
    assert not paths.vagrant_dir().exists()


def test_it_goes_after_an_error_in_the_block(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    with machines.project(0, lambda _: None) as project:
        with pytest.raises(ZeroDivisionError), project.machine():
            raise ZeroDivisionError
        assert not (tmp_path / "domain").exists()


def test_it_goes_after_an_up_that_failed(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "refuses")
    with machines.project(0, lambda _: None) as project:
        with pytest.raises(EngineError, match="vagrant up: no such luck"), project.machine():
            pass
        assert not (tmp_path / "domain").exists()


def test_it_goes_where_nothing_answers(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_args: object, **_kwargs: object) -> tuple[int, bytes]:
        raise EngineError("no answer")

    monkeypatch.setattr(load, "fetch", silent)
    monkeypatch.setattr(machines, "REPLY_TIMEOUT", 0.05)
    with machines.project(0, lambda _: None) as project:
        with pytest.raises(EngineError, match="no answer"), project.machine():
            pass
        assert not (tmp_path / "domain").exists()


def test_an_interrupt_reaches_vagrant_and_the_machine_goes(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "hangs")

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not ((tmp_path / "calls").exists() and "hangs" in calls()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), machines.project(0, lambda _: None) as project, project.machine():
        pass
    thread.join()
    assert calls()[:4] == ["vagrant up", "hangs", "interrupted", "vagrant destroy"]
    assert not (tmp_path / "domain").exists()
    assert not paths.vagrant_dir().exists()


def test_a_vagrant_that_does_not_heed_is_killed(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "hangs")
    monkeypatch.setattr(machines, "UP_TIMEOUT", 0.5)
    monkeypatch.setattr(machines, "_PATIENCE", 0.0)
    with machines.project(0, lambda _: None) as project:
        with pytest.raises(EngineError, match="did not end within"), project.machine():
            pass
        assert not (tmp_path / "domain").exists()


def test_a_domain_that_vagrant_does_not_know_goes_too(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "forgot")
    with machines.project(0, lambda _: None) as project:
        with project.machine():
            pass
        ended = ["virsh destroy sandbox-compare_default", "virsh undefine sandbox-compare_default --remove-all-storage"]
        assert calls() == ["vagrant up", "vagrant destroy", *ended]


def test_what_cannot_be_destroyed_is_found_by_prune(
    calls: Callable[[], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "fails")
    with pytest.raises(EngineError, match="it is locked"), machines.project(0, lambda _: None):
        pass
    assert paths.vagrant_dir().exists()
    monkeypatch.setenv("MOOD", "well")
    line = f"Vagrant machine of a comparison, {paths.vagrant_dir()}"
    assert vagrant.prune(dry_run=True) == [line]
    assert vagrant.prune(dry_run=False) == [line]
    assert vagrant.prune(dry_run=False) == []


def test_a_comparison_at_work_is_left_alone(calls: Callable[[], list[str]]) -> None:
    with machines.project(0, lambda _: None):
        assert vagrant.prune(dry_run=False) == []
        assert paths.vagrant_dir().exists()
        with pytest.raises(BusyError), machines.project(0, lambda _: None):
            pass


def test_the_box_serves_one_workload() -> None:
    machines.check("reactor")
    with pytest.raises(SpecError, match="serves reactor, not threads"):
        machines.check("threads")


def test_without_vagrant_the_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = [host.Missing("program.dnsmasq", "dnsmasq is not installed", "sandbox doctor --fix")]
    monkeypatch.setattr(host, "missing_extra", lambda _: lacking)
    found = machines.info()
    assert (found.available, found.reason, found.remedy) == (False, "dnsmasq is not installed", "sandbox doctor --fix")


class Libvirt:
    """Stands in for virsh and nft; what changes something is noted in `done`."""

    def __init__(self) -> None:
        self.networks: dict[str, bool] = {}
        self.bridge = vagrant.BRIDGE
        self.users: list[str] = []
        self.rules = False
        self.fails = ""
        self.done: list[str] = []

    def virsh(self, *words: str, text: str | None = None) -> str:
        if words[0] == self.fails:
            raise EngineError(f"virsh {words[0]}: refused")
        match words:
            case ("net-list", "--name", *more):
                return "\n".join(name for name, active in self.networks.items() if active or more)
            case ("net-dumpxml", _):
                return f"<bridge name='{self.bridge}' stp='off'/>"
            case ("list", "--all", "--name"):
                return "\n".join([*self.users, "another"])
            case ("domiflist", domain):
                network = vagrant.NETWORK if domain in self.users else "default"
                return f" vnet0   network   {network}   virtio   52:54:00:00:00:01"
        self.done.append(words[0])
        if words[0] == "net-define":
            assert text is not None
            assert f'<bridge name="{vagrant.BRIDGE}"' in text
            self.networks[vagrant.NETWORK] = False
        elif words[0] == "net-undefine":
            del self.networks[vagrant.NETWORK]
        else:
            self.networks[vagrant.NETWORK] = words[0] == "net-start"
        return ""

    def load(self, rules: str) -> None:
        self.rules = "chain input" in rules
        self.done.append("rules" if self.rules else "no rules")


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    made = Libvirt()
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(vagrant, "virsh", made.virsh)
    monkeypatch.setattr(nftables, "load", made.load)
    monkeypatch.setattr(nftables, "table_exists", lambda *_: made.rules)
    return made


def test_the_rules_are_there_before_the_network(libvirt: Libvirt) -> None:
    vagrant.ensure()
    assert libvirt.done == ["rules", "net-define", "net-start"]
    vagrant.ensure()
    assert libvirt.done[3:] == ["rules"], "a firewall that was loaded anew may have taken them away"


def test_a_network_that_is_off_is_started(libvirt: Libvirt) -> None:
    libvirt.networks[vagrant.NETWORK] = False
    vagrant.ensure()
    assert libvirt.done == ["rules", "net-start"]


def test_a_network_on_another_bridge_is_replaced(libvirt: Libvirt) -> None:
    libvirt.networks[vagrant.NETWORK] = True
    libvirt.bridge = "virbr0"
    vagrant.ensure()
    assert libvirt.done == ["rules", "net-destroy", "net-undefine", "net-define", "net-start"]


def test_one_that_a_machine_uses_is_refused(libvirt: Libvirt) -> None:
    libvirt.networks[vagrant.NETWORK] = True
    libvirt.bridge, libvirt.users = "virbr0", ["web_default"]
    with pytest.raises(BusyError, match="vagrant destroy"):
        vagrant.ensure()
    assert libvirt.networks == {vagrant.NETWORK: True}


def test_a_network_that_does_not_start_goes_again(libvirt: Libvirt) -> None:
    libvirt.fails = "net-start"
    with pytest.raises(EngineError, match="net-start"):
        vagrant.ensure()
    assert (libvirt.networks, libvirt.rules) == ({}, False)


def test_it_is_removed_with_its_last_user(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    vagrant.ensure()
    monkeypatch.setattr(vagrant, "BRIDGE", "lo")  # a link that is there
    libvirt.users = ["web_default"]
    assert vagrant.release() == []
    assert libvirt.rules
    libvirt.users = []
    expected = [f"libvirt network {vagrant.NETWORK}", f"nftables table inet {vagrant.TABLE}"]
    assert vagrant.release(dry_run=True) == expected
    assert libvirt.rules
    assert vagrant.release() == expected
    assert (libvirt.networks, libvirt.rules) == ({}, False)
    assert vagrant.release() == []


def test_it_stays_for_a_vagrant_that_has_no_machine_yet(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as caller:
        assert vagrant.main(["up", str(caller.pid)]) == 0
        with monkeypatch.context() as there:
            there.setattr(vagrant, "BRIDGE", "lo")  # a link that is there
            assert vagrant.release() == []
        assert libvirt.networks == {vagrant.NETWORK: True}
        caller.kill()
    assert len(vagrant.release()) == 2
    assert not list(paths.host_dir().glob("vagrant-up-*"))


def test_while_libvirt_is_away_the_rules_stay_with_the_bridge(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    vagrant.ensure()
    libvirt.fails = "net-list"
    monkeypatch.setattr(vagrant, "BRIDGE", "lo")  # a link that is there
    assert vagrant.release() == []
    assert libvirt.rules
    monkeypatch.setattr(vagrant, "BRIDGE", "nosuchlink")
    assert vagrant.release() == [f"nftables table inet {vagrant.TABLE}"]


def test_the_command_is_roots(
    libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert vagrant.main(["up"]) == UnavailableError.exit_code
    assert "needs root" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for words in (["sideways"], ["up"], ["up", "x"], []):
        assert vagrant.main(words) == SpecError.exit_code
    assert vagrant.main(["up", "4194304"]) == vagrant.main(["down"]) == 0, "no such process has ended already"
    assert (libvirt.networks, libvirt.rules) == ({}, False)
