"""What is in force, out of what the guest, the domain and the kernel say."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sandbox.isolation.vm import inspection, xml
from sandbox.isolation.vm.xml import DomainPlan
from tests.unit.isolation.vm.test_xml import PLAN

ANSWER = """\
@@status
Name:\ttini
Uid:\t10001\t10001\t10001\t10001
Gid:\t10001\t10001\t10001\t10001
Groups:\t4 7\x20
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t00000000a80425fb
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t0
Seccomp_filters:\t0
@@mounts
21 1 254:0 / / ro,nosuid,nodev,noatime - ext4 /dev/vda ro
25 21 0:22 / /a\\040b rw,nosuid - tmpfs tmpfs rw,size=65536k
@@meminfo
MemTotal:         223624 kB
@@swaps
Filename\tType
@@address
02:5b:c6:12:02:01
@@processors
2
@@namespaces
mnt:[1]
net:[2]
mnt:[1]
net:[3]
@@addresses
2: eth0    inet 198.18.2.1/16 scope global eth0
@@routes
198.18.0.0/16 dev eth0
"""


def test_what_the_guest_says() -> None:
    found = inspection.guest(inspection.sections(ANSWER), "198.18.2.9")
    assert json.loads(json.dumps(found)) == found
    assert found["user"] == {"uid": 10001, "gid": 10001, "groups": [4, 7], "no_new_privileges": True}
    assert found["capabilities"]["bounding"] == "00000000a80425fb"
    assert found["seccomp"] == {"mode": "disabled", "filters": 0}
    assert [mount["target"] for mount in found["mounts"]] == ["/", "/a b"]
    assert found["mounts"][0]["options"] == ["ro", "nosuid", "nodev", "noatime"]
    assert found["namespaces"]["net"] == "own"
    assert found["namespaces"]["mnt"] == "guest"
    assert (found["network"]["address"], found["network"]["mac"]) == ("198.18.2.1", "02:5b:c6:12:02:01")
    assert found["guest"]["memory"] == 223624 * 1024
    assert (found["guest"]["processors"], found["guest"]["swap"]) == (2, False)


def test_what_nobody_said_is_none() -> None:
    for answer in (None, {}, inspection.sections("nonsense")):
        found = inspection.guest(answer, "198.18.2.9")
        assert found["user"]["uid"] is None
        assert found["user"]["no_new_privileges"] is None
        assert set(found["capabilities"].values()) == {None}
        assert found["seccomp"]["mode"] is None
        assert found["mounts"] is None
    assert inspection.domain(None) is None
    assert inspection.engine(None) is None
    assert inspection.engine(2**22 + 1) is None


def test_what_the_domain_says() -> None:
    plan: DomainPlan = PLAN
    # As libvirt says it: memory in KiB, the label with its model.
    text = xml.domain_xml(plan).replace('<memory unit="b">268435456<', '<memory unit="KiB">262144<')
    found = inspection.domain(text)
    assert found is not None
    assert (found["accelerator"], found["processors"], found["quota"]) == ("tcg", 2, 1.5)
    assert found["memory"] == plan.memory
    assert found["devices"] == [
        "channel unix", "channel unix", "controller pci", "controller virtio-serial", "disk file", "interface bridge",
        "serial unix",
    ]  # fmt: skip
    assert found["disks"] == [{"file": "/images/disk.raw", "format": "raw", "read_only": True}]
    assert found["security_label"] == plan.owner


def test_a_process_of_this_host() -> None:
    found = inspection.engine(os.getpid())
    assert found is not None
    assert found["user"]["uid"] == os.getuid()
    assert Path(found["program"]).name.startswith("python")
    assert found["namespaces"]["net"] == "host"
    assert found["sandbox_option"] is None
