"""Test the domain's XML: its contents, and that no value can become markup."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import EngineError
from sandbox.isolation.vm import xml as vm_xml
from sandbox.isolation.vm.xml import DomainPlan

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
    ports=(Path("/box/stdout"), Path("/box/stderr")),
    owner="+64055:+107",
)


def tree(plan: DomainPlan = PLAN) -> ET.Element:
    return ET.fromstring(vm_xml.domain_xml(plan))


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
    # A guest on real processors keeps its mitigations.
    assert "mitigations" not in (kvm.findtext("os/cmdline") or "")


def test_interrupts_are_found_without_acpi_where_nothing_else_needs_it() -> None:
    one = replace(PLAN, vcpus=1)
    assert "acpi=noirq" in (tree(one).findtext("os/cmdline") or "")
    assert "acpi=noirq" not in (tree().findtext("os/cmdline") or ""), "the second processor would not be found"
    assert "acpi=noirq" not in (tree(replace(one, accelerator="kvm")).findtext("os/cmdline") or "")


def test_it_carries_the_id_twice() -> None:
    root = tree()
    assert root.findtext("name") == "sbx-0123456789ab"
    assert attributes(root, f"metadata/{{{vm_xml.METADATA_NAMESPACE}}}sandbox")["id"] == "0123456789ab"


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
        "channel", "channel", "controller", "controller", "controller", "disk", "interface", "memballoon", "serial",
    ]  # fmt: skip
    assert devices.find("disk/readonly") is not None
    assert attributes(devices, "disk/driver")["type"] == "raw"
    usb = devices.find("controller[@type='usb']")
    assert usb is not None
    assert usb.attrib["model"] == "none"
    assert attributes(devices, "memballoon")["model"] == "none"


def test_the_output_has_a_port_each() -> None:
    channels = tree().findall("devices/channel")
    found = [(channel.find("source"), channel.find("target"), channel.find("address")) for channel in channels]
    assert [
        (source.attrib["path"], target.attrib["name"], address.attrib["port"])
        for source, target, address in found
        if source is not None and target is not None and address is not None
    ] == [("/box/stdout", "org.sandbox.stdout", "1"), ("/box/stderr", "org.sandbox.stderr", "2")]
    assert attributes(tree(), "devices/controller[@type='virtio-serial']")["ports"] == "3"
    # QEMU listens, so that nothing which the guest writes is lost before we connect.
    assert {channel.attrib["type"] for channel in channels} == {"unix"}
    assert {source.attrib["mode"] for source, _, _ in found if source is not None} == {"bind"}


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


# What could end an element, an attribute, a comment or a section; what text cannot hold; and what no XML can.
HOSTILE = st.text(
    st.sampled_from("<>&\"'/=?!-[]{}$`\\ \t\n\r\0\x1b\ufffe\udcff") | st.characters(), min_size=1, max_size=30
) | st.sampled_from(
    [
        "</name><devices><filesystem type='mount'/></devices>",
        "x' relabel='yes",
        'a" type="spicevmc',
        "]]></os>",
        "<!-- ",
        "<?xml version='1.0'?>",
        "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
        "&#0;",
        "/\u2028\u0085",
    ]
)
TEXT_FIELDS = [found.name for found in fields(DomainPlan) if found.type in ("str", "Path", "str | None")]


def structure(root: ET.Element) -> list[tuple[str, tuple[str, ...]]]:
    """Every element, in order, with the names of its attributes."""
    return [(element.tag, tuple(element.attrib)) for element in root.iter()]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(set(TEXT_FIELDS) - {"accelerator"})), HOSTILE)
def test_no_value_becomes_structure(field: str, value: str) -> None:
    """It arrives as it is, or the whole domain is refused."""
    path = isinstance(getattr(PLAN, field), Path)
    change: dict[str, Any] = {field: Path(value) if path else value}
    plan = replace(PLAN, **change)
    if any(
        (ord(c) < 32 and c not in "\t\n") or 0xD800 <= ord(c) <= 0xDFFF or ord(c) in (0xFFFE, 0xFFFF) for c in value
    ):
        with pytest.raises(EngineError, match="cannot be passed to libvirt"):
            vm_xml.domain_xml(plan)
        return
    text = vm_xml.domain_xml(plan)
    root = ET.fromstring(text)
    assert structure(root) == structure(tree())
    wanted = str(getattr(plan, field))
    values = [element.text or "" for element in root.iter()]
    values += [given for element in root.iter() for given in element.attrib.values()]
    assert wanted in values or f"sbx-{wanted}" in values
    # Everything else is unchanged.
    known = [element.text or "" for element in tree().iter()]
    known += [given for element in tree().iter() for given in element.attrib.values()]
    assert {given for given in values if wanted not in given} <= set(known)


@pytest.mark.parametrize("hostile", ["/\0", "/\x1b[2J", "/\udcff", "/a\rb", "/\ufffe"])
def test_what_xml_cannot_hold_is_refused(hostile: str) -> None:
    with pytest.raises(EngineError, match="cannot be passed to libvirt"):
        vm_xml.domain_xml(replace(PLAN, disk=Path(hostile)))
