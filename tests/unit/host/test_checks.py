"""The survey of the host: it never raises, names what is missing, and says how to provide it."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sandbox import host
from sandbox.cli.doctor import table
from sandbox.host import distribution, kernel, libvirt, programs, report, vagrant, verdicts
from sandbox.host.checks import CHECKS, COMMON, EXTRAS, OPTIONAL, Survey
from sandbox.host.finding import Finding
from sandbox.isolation import LEVELS, driver, requirements
from tests import conftest


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def _given(monkeypatch: pytest.MonkeyPatch, name: str, check: Callable[[Survey], Finding]) -> None:
    monkeypatch.setitem(CHECKS, name, check)


def _all_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHECKS:
        _given(monkeypatch, name, lambda _, name=name: Finding(name, True, "there"))  # type: ignore[misc]


def test_every_level_is_known_and_needs_only_known_capabilities() -> None:
    assert list(requirements()) == list(LEVELS)
    assert {*COMMON, *(name for required in requirements().values() for name in required)} <= set(CHECKS)
    assert {item.name for item in OPTIONAL} <= set(CHECKS)
    assert {name for required in EXTRAS.values() for name in required} <= set(CHECKS)
    assert not set(EXTRAS) & {*LEVELS, *CHECKS}


def test_a_level_with_everything_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _all_well(monkeypatch)
    assert all(driver(level).missing() == [] for level in LEVELS)


def test_without_vagrant_no_level_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _all_well(monkeypatch)
    assert table(report.look(requirements())).splitlines()[6].split() == ["vagrant", "yes"]
    _given(monkeypatch, "program.dnsmasq", lambda _: Finding("program.dnsmasq", False, "no dnsmasq", "install it"))
    found = report.look(requirements())
    assert found.complete
    assert found.notes == ()
    missing = {"what": "program.dnsmasq", "reason": "no dnsmasq", "remedy": "install it"}
    assert found.to_json()["extras"] == [{"extra": "vagrant", "available": False, "missing": [missing]}]
    row = table(found).splitlines()[6]
    assert re.split(r"\s{2,}", row) == ["vagrant", "no (optional)", "no dnsmasq", "install it"]
    assert host.missing_extra("vagrant") == [host.Missing("program.dnsmasq", "no dnsmasq", "install it")]


def test_vagrant_can_be_said_to_be_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra has a name for SANDBOX_MUST_WORK, whichever part of it is missing."""
    lacking = (host.Missing("program.dnsmasq", "no dnsmasq", "install it"),)
    monkeypatch.setattr(conftest, "missing_for", lambda name: lacking if name == "vagrant" else ())
    marker = pytest.mark.needs("vagrant").mark
    item = SimpleNamespace(iter_markers=lambda kind: [marker] if kind == "needs" else [])
    assert list(conftest.lacks(cast(pytest.Item, item))) == [("vagrant", lacking[0])]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make Vagrant the distribution's, with an empty home and an empty directory of plugins."""
    monkeypatch.setattr(vagrant, "which", lambda _: "/usr/bin/vagrant")
    monkeypatch.setattr(vagrant, "SYSTEM_PLUGINS", tmp_path / "plugins.d")
    monkeypatch.setenv("VAGRANT_HOME", str(tmp_path))
    (tmp_path / "plugins.d").mkdir()
    return tmp_path


def test_vagrants_plugin_is_the_distributions_or_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not vagrant.plugin().ok
    (home / "plugins.json").write_text('{"version": "1", "installed": {"vagrant-disksize": {}}}')
    assert not vagrant.plugin().ok
    (home / "plugins.json").write_text('{"version": "1", "installed": {"vagrant-libvirt": {}}}')
    assert vagrant.plugin().detail == str(home / "plugins.json")
    (home / "plugins.json").write_text("{half")
    assert not vagrant.plugin().ok
    system = home / "plugins.d" / "vagrant-libvirt.json"
    system.write_text('{"vagrant-libvirt": {"ruby_version": "3.1.2"}}')
    assert vagrant.plugin().detail == str(system)
    monkeypatch.setattr(vagrant, "which", lambda _: "/opt/vagrant/bin/vagrant")
    assert vagrant.plugin().remedy == "vagrant plugin install vagrant-libvirt"


def test_with_sudo_the_callers_plugin_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.struct_passwd(("somebody", "x", 4242, 4242, "", str(home), "/bin/sh"))
    nobody = pwd.struct_passwd(("root", "x", 0, 0, "", "/nonexistent", "/bin/sh"))
    monkeypatch.delenv("VAGRANT_HOME")
    monkeypatch.setenv("SUDO_UID", "4242")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: user if number == 4242 else nobody)
    (home / ".vagrant.d").mkdir()
    (home / ".vagrant.d" / "plugins.json").write_text('{"installed": {"vagrant-libvirt": {}}}')
    assert vagrant.plugin().ok


def test_what_is_missing_has_reason_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    _all_well(monkeypatch)
    _given(monkeypatch, "docker.daemon", lambda _: Finding("docker.daemon", False, "it is off", "start it"))
    expected = [host.Missing("docker.daemon", "it is off", "start it")]
    assert driver("container").missing() == expected
    assert driver("namespace").missing() == []
    assert host.check("docker.daemon") == expected[0]
    assert host.check("seccomp") is None


def test_without_root_that_is_the_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for level in LEVELS:
        assert [missing.what for missing in driver(level).missing()] == ["root"]


def test_a_check_that_trips_is_a_finding_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Survey) -> Finding:
        raise RuntimeError("no such luck")

    _given(monkeypatch, "seccomp", broken)
    found = host.check("seccomp")
    assert found is not None
    assert "no such luck" in found.reason


def test_unknown_names_are_the_callers_mistake() -> None:
    with pytest.raises(KeyError):
        host.check("magic")
    with pytest.raises(KeyError):
        host.missing_for(("magic",))


def test_what_the_kernel_can_do_is_looked_at_once_per_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def once(_: Survey) -> Finding:
        looked.append(1)
        return Finding("ns.user", True, "can be created")

    _given(monkeypatch, "ns.user", once)
    assert Survey().look("ns.user").ok
    assert Survey().look("ns.user") == Finding("ns.user", True, "can be created")
    assert len(looked) == 1
    monkeypatch.setattr(verdicts, "boot_id", lambda: "another boot")
    assert Survey().look("ns.user").ok
    assert len(looked) == 2


def test_what_it_cannot_do_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _given(monkeypatch, "ns.user", lambda _: Finding("ns.user", False, "no", "yes"))
    assert not Survey().look("ns.user").ok
    _given(monkeypatch, "ns.user", lambda _: Finding("ns.user", True, "yes"))
    assert Survey().look("ns.user").ok


def test_verdicts_hold_for_their_key_alone(state: Path) -> None:
    verdicts.remember("kvm", "qemu 7", {"works": False})
    assert verdicts.recall("kvm", "qemu 7") == {"works": False}
    assert verdicts.recall("kvm", "qemu 8") is None
    assert verdicts.recall("runsc", "qemu 7") is None
    (state / "host" / "kvm.json").write_text("{half", encoding="utf-8")
    assert verdicts.recall("kvm", "qemu 7") is None
    (state / "host" / "kvm.json").write_text("[]", encoding="utf-8")
    assert verdicts.recall("kvm", "qemu 7") is None


def test_a_state_directory_that_cannot_be_written_only_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", "/proc/nowhere")
    verdicts.remember("kvm", "key", {"works": True})
    assert verdicts.recall("kvm", "key") is None


def test_the_identity_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "program"
    assert verdicts.file_identity(path).endswith("none")
    path.write_bytes(b"1")
    first = verdicts.file_identity(path)
    assert verdicts.file_identity(path) == first
    path.write_bytes(b"22")
    assert verdicts.file_identity(path) != first


def test_os_release() -> None:
    text = '# a comment\nID=ubuntu\nID_LIKE="debian"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n\nbroken line\n'
    assert distribution.read_os_release(text) == {
        "ID": "ubuntu",
        "ID_LIKE": "debian",
        "PRETTY_NAME": "Ubuntu 24.04 LTS",
    }


def test_remedies_elsewhere_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "distribution", lambda: distribution.Distribution("Plan 9", False))
    assert distribution.remedy("program.nft") == "install the equivalent of Debian's nftables"
    monkeypatch.setattr(distribution, "distribution", lambda: distribution.Distribution("Debian", True))
    assert distribution.remedy("program.nft") == "sandbox doctor --fix"


def test_programs_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SYSTEM_PATH", str(tmp_path))
    found = programs.program("qemu")
    assert not found.ok
    assert found.detail == "qemu-system-x86_64 and qemu-img are not installed"
    assert found.remedy


def test_modules_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = programs.module("no_such_module")
    assert not found.ok
    assert sys.executable in found.remedy
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not programs.module("libvirt").ok


def test_a_binding_that_does_not_load_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ImportError(f"{name}: libvirt.so.0: cannot open shared object file")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(programs, "import_module", broken)
    found = programs.module("libvirt")
    assert not found.ok
    assert "libvirt.so.0" in found.detail


@pytest.mark.parametrize(
    ("mode", "gid", "ok"),
    [(0o600, 0, False), (0o660, 0, False), (0o660, 107, True), (0o666, 0, True), (0o640, 107, False)],
)
def test_the_group_of_the_kvm_device(monkeypatch: pytest.MonkeyPatch, mode: int, gid: int, ok: bool) -> None:
    class Device:
        def stat(self) -> os.stat_result:
            return os.stat_result((0o020000 | mode, 0, 0, 1, 0, gid, 0, 0, 0, 0))

        def __str__(self) -> str:
            return "/dev/kvm"

    monkeypatch.setattr(libvirt, "KVM_DEVICE", Device())
    found = libvirt.kvm_group()
    assert found.ok is ok
    assert ok or "chgrp kvm" in found.remedy


def test_no_kvm_device_no_trap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libvirt, "KVM_DEVICE", tmp_path / "kvm")
    assert libvirt.kvm_group().ok


def test_libvirts_versions() -> None:
    text = (
        "Compiled against library: libvirt 9.0.0\nUsing library: libvirt 9.0.0\nUsing API: QEMU 9.0.0\n"
        "Running hypervisor: QEMU 7.2.22\nRunning against daemon: 9.0.0\n"
    )
    assert libvirt.read_version(text) == "libvirt 9.0.0, QEMU 7.2.22"
    assert libvirt.read_version("") == "libvirt of unknown version, QEMU"


def test_a_namespace_that_the_kernel_does_not_know() -> None:
    found = kernel.namespace("nonsense")
    assert not found.ok
    assert found.remedy


def test_programs_that_hang_are_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_TIMEOUT", 0.1)
    assert "did not finish" in (kernel._try(["sleep", "5"]) or "")
    assert "not installed" in (kernel._try(["no-such-program-here"]) or "")
    assert kernel._try(["true"]) is None


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_each_check_answers_on_this_host(name: str) -> None:
    found = CHECKS[name](Survey())
    assert found.name == name
    assert found.detail
    assert "\n" not in found.detail + found.remedy
    assert found.ok is (found.remedy == "")


def test_importing_the_package_imports_no_engine() -> None:
    code = (
        "import sys, sandbox.host as c; c.missing_for(('seccomp',)); "
        "print(sorted({'docker', 'libvirt', 'libvirtmod', 'paramiko', 'pyroute2', 'http.client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
