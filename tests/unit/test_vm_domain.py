"""The domain's XML: what it says, and that values cannot become structure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from sandbox.isolation import vm_domain
from sandbox.isolation.vm_domain import DomainPlan

PLAN = DomainPlan(
    ident="0123456789ab",
    accelerator="tcg",
    vcpus=2,
    quota=1.5,
    cpuset="0-1",
    memory=256 << 20,
    kernel=Path("/images/vmlinuz"),
    initrd=Path("/box/initrd"),
    disk=Path("/images/disk.raw"),
    bridge="sbx0",
    interface="sbx0123456789a",
    mac="02:5b:c6:12:02:00",
    console=Path("/box/console"),
    console_log=Path("/box/console.log"),
    output_log=Path("/box/log"),
    owner="+64055:+107",
)


def tree(plan: DomainPlan = PLAN) -> ET.Element:
    return ET.fromstring(vm_domain.domain_xml(plan))


def attributes(root: ET.Element, path: str) -> dict[str, str]:
    found = root.find(path)
    assert found is not None, path
    return found.attrib


def test_emulated_and_not() -> None:
    assert tree().attrib["type"] == "qemu"
    assert tree().findtext("cpu/model") == "Nehalem"
    assert attributes(tree(), "cpu/feature") == {"policy": "require", "name": "rdrand"}
    kvm = tree(replace(PLAN, accelerator="kvm"))
    assert kvm.attrib["type"] == "kvm"
    assert attributes(kvm, "cpu")["mode"] == "host-passthrough"
    # A guest on real processors keeps its defences.
    assert "mitigations" not in (kvm.findtext("os/cmdline") or "")


def test_it_carries_the_id_twice() -> None:
    root = tree()
    assert root.findtext("name") == "sbx-0123456789ab"
    assert attributes(root, f"metadata/{{{vm_domain.METADATA_NAMESPACE}}}sandbox")["id"] == "0123456789ab"


def test_limits() -> None:
    root = tree()
    assert (root.findtext("memory"), attributes(root, "memory")["unit"]) == (str(256 << 20), "b")
    assert (root.findtext("vcpu"), attributes(root, "vcpu")["cpuset"]) == ("2", "0-1")
    assert attributes(root, "cputune/emulatorpin")["cpuset"] == "0-1"
    assert root.findtext("cputune/global_quota") == "150000"
    assert root.findtext("cputune/global_period") == "100000"
    free = tree(replace(PLAN, quota=None, cpuset=None))
    assert free.find("cputune/global_quota") is None
    assert free.find("cputune/emulatorpin") is None
    assert "cpuset" not in attributes(free, "vcpu")


def test_devices_are_few_and_the_disk_is_read_only() -> None:
    devices = tree().find("devices")
    assert devices is not None
    assert sorted(device.tag for device in devices) == [
        "controller", "controller", "disk", "interface", "memballoon", "serial", "serial",
    ]  # fmt: skip
    assert devices.find("disk/readonly") is not None
    assert attributes(devices, "disk/driver")["type"] == "raw"
    usb = devices.find("controller[@type='usb']")
    assert usb is not None
    assert usb.attrib["model"] == "none"
    assert attributes(devices, "memballoon")["model"] == "none"


def test_the_network_card_is_as_assigned() -> None:
    card = tree().find("devices/interface")
    assert card is not None
    assert attributes(card, "mac")["address"] == PLAN.mac
    assert attributes(card, "source")["bridge"] == "sbx0"
    assert attributes(card, "target")["dev"] == "sbx0123456789a"


def test_qemu_runs_as_the_user_given() -> None:
    root = tree()
    assert root.findtext("seclabel/label") == "+64055:+107"
    assert attributes(root, "seclabel")["relabel"] == "no"


@pytest.mark.parametrize("hostile", ["/a<b>&\"'</kernel><x/>", "/ä ö\n/€", "/]]>"])
def test_a_value_stays_a_value(hostile: str) -> None:
    root = tree(replace(PLAN, kernel=Path(hostile), disk=Path(hostile)))
    assert root.findtext("os/kernel") == hostile
    assert attributes(root, "devices/disk/source")["file"] == hostile
    assert [child.tag for child in root] == [child.tag for child in tree()]


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("sbx-0123456789ab", "0123456789ab"),
        ("sbx-0123456789AB", None),
        ("sbx-0123456789ab0", None),
        ("0123456789ab", None),
        ("web", None),
        ("sbx-", None),
    ],
)
def test_whose_domain(name: str, ident: str | None) -> None:
    assert vm_domain.ident_of(name) == ident


def test_logs_of_others_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_domain, "LOG_DIR", tmp_path)
    for name in ("sbx-0123456789ab.log", "sbx-0123456789ab.log.0", "sbx-ffffffffffff.log", "sbx-web.log", "web.log"):
        (tmp_path / name).touch()
    assert [path.name for path in vm_domain.log_files("0123456789ab")] == [
        "sbx-0123456789ab.log",
        "sbx-0123456789ab.log.0",
    ]
    assert len(vm_domain.log_files()) == 3


def test_no_pid_where_there_is_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_domain, "PID_DIR", tmp_path)
    assert vm_domain.qemu_pid("0123456789ab") is None
    (tmp_path / "sbx-0123456789ab.pid").write_text("17\n")
    assert vm_domain.qemu_pid("0123456789ab") == 17
    (tmp_path / "sbx-0123456789ab.pid").write_text("")
    assert vm_domain.qemu_pid("0123456789ab") is None
