"""Limits where cgroup v2 is all there is: in a virtual machine of our own image, whatever the host has.

One machine boots, with an init of the test's own and `sandbox.kernel` in its initramfs, and runs `pure_v2.py` as its
root. The kernel's counters are the witness.
"""

from __future__ import annotations

import errno
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox.images import vm as vmimage
from sandbox.isolation.vm import driver
from sandbox.spec import MIB
from tests import leaks
from tests.integration import pure_v2
from tests.integration.machines import SPEC, created, level
from tests.integration.pure_v2 import CPUS, DISK, MEMORY, PIDS, WALL

pytestmark = pytest.mark.level("vm")

CODE = f"{vmimage.GUEST_DIR}/code"
INIT = f"""#!/{vmimage.GUEST_HOME}/busybox sh
bb=/{vmimage.GUEST_HOME}/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb mount -t tmpfs tmpfs /run
. /{vmimage.GUEST_HOME}/etc/settings
exec 5<>"$(echo /dev/vport*p1)"
until read -r _ <&5; do :; done
/usr/bin/python3 -I -S /{vmimage.GUEST_HOME}/code/pure_v2.py >&5 2>&1
echo "@$nonce end $?" >&5
read -r _ <&5
$bb reboot -f
"""
TIMEOUT = 240.0


def archive() -> bytes:
    """The test's init in the place of the guest's own, and the code that it runs."""
    package = Path(sandbox.__file__).parent
    files = [(path, f"sandbox/kernel/{path.name}") for path in (package / "kernel").iterdir() if path.is_file()]
    files += [(package / "__init__.py", "sandbox/__init__.py"), (Path(pure_v2.__file__), "pure_v2.py")]
    entries = [vmimage.file_entry(f"{vmimage.GUEST_DIR}/init", INIT.encode(), 0o755)]
    entries += [vmimage.directory_entry(f"{CODE}{name}") for name in ("", "/sandbox", "/sandbox/kernel")]
    entries += [vmimage.file_entry(f"{CODE}/{name}", path.read_bytes(), 0o644) for path, name in files]
    return b"".join(vmimage.cpio(entries))


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the guest's root saw."""
    before = leaks.snapshot()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "config_archive", lambda files: vmimage.config_archive(files) + archive())
        with created(replace(SPEC, memory=512 * MIB)) as machine:
            level().hypervisor.resume(machine.record.id)
            machine.wait(TIMEOUT)
            said = b"".join(machine.logs()).decode("utf-8", "replace")
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"
    lines = said.strip().splitlines()
    assert lines, "the guest said nothing"
    assert lines[-1].startswith("{"), said
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def part(seen: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = seen[name]
    assert "failed" not in found, found.get("failed")
    return found


def test_it_is_pure(seen: dict[str, Any]) -> None:
    assert seen["mode"] == "v2"
    assert {"cpu", "memory", "pids", "cpuset"} <= set(seen["controllers"])


@pytest.mark.parametrize("name", ["pids", "cpu", "disk"])
def test_limits_are_read_back(seen: dict[str, Any], name: str) -> None:
    assert part(seen, name)["limits"] == [CPUS, MEMORY, PIDS]


def test_every_wall_of_the_namespace_level_stands(seen: dict[str, Any]) -> None:
    found = part(seen, "walls")
    assert found["code"] == 0, found["said"]
    look = json.loads(found["said"])
    assert look["status"] == {
        "Uid": "\t".join(["10001"] * 4),
        "CapEff": "0" * 16,
        "CapBnd": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    assert look["pids"] == [1]
    assert look["hostname"] == "walls"
    assert look["cgroup"] == "0::/\n", "the group is the root of its own cgroup namespace"
    assert look["root"] == errno.EROFS
    assert look["group"] in (errno.EROFS, errno.EACCES, errno.ENOENT)


def test_memory_is_held_without_swap(seen: dict[str, Any]) -> None:
    found = part(seen, "memory")["pushed"]
    assert found["limits"] == [CPUS, MEMORY, PIDS]
    assert found["swap"] == 0
    assert found["oom_group"] is True
    assert "allocated" not in found["said"]
    assert found["code"] == -signal.SIGKILL, "all of the group goes, its init too"
    # One for the process that is over, one for each other of the group (cgroup-v2.rst, memory.oom.group).
    assert found["counters"]["oom_kill"] >= 1
    assert found["counters"]["oom_group_kill"] == 1
    assert found["events"]["oom_kill"] == found["counters"]["oom_kill"]
    assert found["events"]["memory_max"] == found["counters"]["max"] > 0
    assert 0.9 * MEMORY < found["peak"] <= MEMORY


def test_the_same_with_room_for_it_is_no_event(seen: dict[str, Any]) -> None:
    found = part(seen, "memory")["control"]
    assert found["code"] == 0
    assert found["said"].split() == ["allocated", str(MEMORY * 5 // 4 // MIB)]
    assert found["counters"]["oom_kill"] == 0
    assert found["events"] == {"memory_max": 0, "oom_kill": 0, "pids_max": 0}
    assert MEMORY < found["peak"] <= 2 * MEMORY


def test_processes_are_held(seen: dict[str, Any]) -> None:
    found = part(seen, "pids")
    word, number, made = found["said"]
    assert (word, int(number)) == ("refused", errno.EAGAIN)
    # Its init and itself are among them.
    assert int(made) == PIDS - 2
    assert found["members"] == PIDS == found["usage"][2]
    assert found["counters"]["max"] == found["events"]["pids_max"] >= 1


def test_a_group_is_killed_and_removed(seen: dict[str, Any]) -> None:
    found = part(seen, "pids")
    assert found["code"] == -signal.SIGKILL
    assert found["killed_in"] < 5
    assert found["left"] == []


def test_processor_time_is_held(seen: dict[str, Any]) -> None:
    found = part(seen, "cpu")
    assert found["code"] == 0
    asked = CPUS * WALL * 1.25
    assert found["usage"] >= asked
    # What was asked for took as long as the quota makes it, but for what a group may start with: one period's quota.
    assert found["wall"] >= asked / CPUS - 0.1
    assert found["usage"] <= CPUS * (found["wall"] + 0.1) * 1.05
    assert found["throttled"] > 0.5 * WALL / 0.1
    assert found["throttled_seconds"] > 0.25 * WALL


def test_the_disk_is_held(seen: dict[str, Any]) -> None:
    found = part(seen, "disk")
    word, number, written = found["said"]
    assert (word, int(number)) == ("refused", errno.ENOSPC)
    assert 0.9 * DISK < int(written) <= DISK


def test_a_group_is_frozen_and_thawed(seen: dict[str, Any]) -> None:
    found = part(seen, "freeze")
    assert found["frozen"]
    assert found["running"] > 0.05
    assert found["while_frozen"] < 0.01
    assert found["thawed"]
    assert found["after"] > 0.05
    assert found["code"] == -signal.SIGKILL
