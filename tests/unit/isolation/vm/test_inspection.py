"""Test the inspection of a machine, from the guest's answer, the domain's XML and the kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sandbox.isolation.base import State
from sandbox.isolation.in_force import Disk, Ended, Inspection
from sandbox.isolation.vm import inspection, xml
from sandbox.isolation.vm.xml import DomainPlan
from sandbox.spec import Limits, SandboxSpec
from sandbox.state import codec
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record
from tests.unit.isolation.vm.test_xml import PLAN

STATUS = """\
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
"""
FILES = {
    "/proc/5/status": STATUS,
    "/proc/5/mountinfo": "21 1 254:0 / / ro,nosuid,nodev,noatime - ext4 /dev/vda ro\n"
    "25 21 0:22 / /a\\040b rw,nosuid - tmpfs tmpfs rw,size=65536k\n",
    "/proc/5/net/fib_trie": "     |-- 198.18.2.1\n        /32 host LOCAL\n",
    "/proc/5/net/dev": "head\nhead\n  eth0: 5 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0\n",
    "/proc/5/net/route": "head\neth0\t000012C6\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
    "/proc/5/ns/net": "net:[2]",
    "/proc/1/ns/net": "net:[2]",
    "/proc/meminfo": "MemTotal:         223624 kB\nSwapTotal:             0 kB\n",
    "/proc/cpuinfo": "processor\t: 0\nprocessor\t: 1\n",
    "/proc/vmstat": "nr_free_pages 7\noom_kill 0\n",
    "/sys/class/net/eth0/address": "02:5b:c6:12:02:01\n",
}


def look(state: State, files: dict[str, str] | None, console_log: Path = Path("/none")) -> Inspection:
    lines = [f"{path}:{line}\n" for path, text in (files or {}).items() for line in text.rstrip("\n").split("\n")]
    answer = None if files is None else "pid:5\n" + "".join(lines)
    record = Record("0123456789ab", SandboxSpec("web", "sleep", "vm", ("sleep",)), "198.18.2.1")
    record.process = ProcessId.of(os.getpid())
    return inspection.inspect(record, answer, None, state, Limits(1.5, 2**28, 64, "here", 2**26), console_log)


def test_what_the_guest_says() -> None:
    found = look(State(running=True, pid=os.getpid()), FILES)
    assert codec.decode(Inspection, json.loads(json.dumps(found.to_json())), "effective") == found
    assert (found.user.uid, found.user.gid, found.user.groups) == (10001, 10001, [4, 7])
    assert found.user.no_new_privileges is True
    assert found.capabilities.bounding is not None
    assert {"CAP_CHOWN", "CAP_SETFCAP"} < set(found.capabilities.bounding)
    assert len(found.capabilities.bounding) == 14
    assert (found.seccomp.mode, found.seccomp.filters) == ("disabled", 0)
    assert found.mounts is not None
    assert [mount.target for mount in found.mounts] == ["/", "/a b"]
    assert found.mounts[0].options == ["ro", "nosuid", "nodev", "noatime"]
    assert found.namespaces.net.owner == "guest"
    assert found.namespaces.mnt.owner is None
    assert (found.network.address, found.network.mac) == ("198.18.2.1", "02:5b:c6:12:02:01")
    assert (found.network.own, found.network.link) == (True, "eth0")
    assert found.network.routes == ["198.18.0.0/16 dev eth0"]
    assert (found.kernel.memory, found.kernel.processors, found.kernel.swap) == (223624 * 1024, 2, 0)
    assert (found.limits.swap, found.limits.pids, found.limits.cpus) == (0, 64, 1.5)
    assert (found.oom_killed, found.ended) == (False, None)
    assert look(State(running=True), FILES | {"/proc/vmstat": "oom_kill 2\n"}).oom_killed is True


def test_qemu_is_the_process_of_this_host() -> None:
    found = look(State(running=True, pid=os.getpid()), None)
    assert found.process is not None
    assert found.process.user.uid == os.geteuid()
    assert found.process.namespaces.net.owner == "host"
    assert Path(found.process.program or "").name.startswith("python")


def test_what_nobody_said_is_none() -> None:
    for files in (None, {}, {"nonsense": "1"}):
        found = look(State(running=True, pid=2**22 + 1, paused=True), files)
        assert found.user.uid is None
        assert found.user.no_new_privileges is None
        assert found.capabilities.effective is None
        assert found.seccomp.mode is None
        assert found.mounts is None
        assert (found.oom_killed, found.domain, found.process) == (None, None, None)


def test_one_that_has_ended_is_told_by_its_console(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    for words, code, killed, reason in (
        (b"[   4.2] Out of memory: Killed process 91 (python3)\r\n", 137, True, "out of memory"),
        (b"booted\r\n", 0, False, "exited"),
    ):
        log.write_bytes(words)
        os.utime(log, (2.0, 2.0))
        found = look(State(running=False, exit_code=code), None, log)
        assert found.oom_killed is killed
        assert found.ended == Ended("1970-01-01T00:00:02.000+00:00", code, reason)


def test_what_the_domain_says() -> None:
    plan: DomainPlan = PLAN
    # As libvirt says it: memory in KiB, the label with its model.
    text = xml.domain_xml(plan).replace('<memory unit="b">268435456<', '<memory unit="KiB">262144<')
    found = inspection.domain(text, None)
    assert (found.accelerator, found.processors, found.quota) == ("tcg", 2, 1.5)
    assert found.memory == plan.memory
    assert found.devices == [
        "channel unix", "channel unix", "controller pci", "controller virtio-serial", "disk file", "interface bridge",
        "serial unix",
    ]  # fmt: skip
    assert found.disks == [Disk("/images/disk.raw", "raw", read_only=True)]
    assert found.security_label == plan.owner
    assert found.sandbox_option is None
