"""`vm` on a real libvirtd and QEMU: what the contract does not ask of every level."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from sandbox import network
from sandbox.errors import EngineError
from sandbox.isolation import driver, vm, vm_domain
from sandbox.isolation.vm import VmIsolation
from sandbox.isolation.vm_guest import Guest, make_keys
from sandbox.isolation.vm_sandbox import CLIENT_KEY, CONSOLE_LOG, VmSandbox
from sandbox.manager import NETWORK_LOCK, Manager
from sandbox.spec import MIB, SandboxSpec
from sandbox.store import Store, named_lock

pytestmark = pytest.mark.level("vm")

BOOT_TIMEOUT = 90.0
SPEC = SandboxSpec(name="vm-test", workload="none", isolation="vm", argv=("/bin/sleep", "1000"), memory=128 * MIB)


def level() -> VmIsolation:
    return cast(VmIsolation, driver("vm"))


@contextmanager
def created(spec: SandboxSpec) -> Iterator[VmSandbox]:
    """A machine that stands, with the lab network and a place in the store, all gone at the end."""
    store, manager = Store(), Manager()
    store.ensure()
    with ExitStack() as undo:
        ident, lock = store.claim_id()
        undo.callback(os.close, lock)
        undo.callback(manager.release_lab)
        undo.callback(store.forget, ident)
        with named_lock(NETWORK_LOCK):
            network.ensure()
            store.mark_used("vm")
            address = network.allocate(store, ident, own_stack=True)
        record = store.new(replace(spec, name=f"vm-test-{ident[:6]}"), address, ident)
        level().prepare(spec, lambda _: None)
        yield level().create(record.spec, record, undo)


@contextmanager
def started(spec: SandboxSpec = SPEC) -> Iterator[VmSandbox]:
    """A machine whose workload runs."""
    with created(spec) as sandbox:
        sandbox.boot(time.monotonic() + BOOT_TIMEOUT)
        sandbox.start()
        yield sandbox


def shell(script: str, **fields: int) -> SandboxSpec:
    return replace(SPEC, argv=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]


def wait_until_forgotten(ident: str) -> None:
    """libvirt hears of QEMU's end a moment after the process has gone."""
    deadline = time.monotonic() + 10
    while level().hypervisor.exists(ident):
        assert time.monotonic() < deadline, "libvirt still knows the machine"
        time.sleep(0.02)


def pid_of(sandbox: VmSandbox) -> int:
    assert sandbox.record.process is not None
    return sandbox.record.process.pid


def test_what_the_machine_is_and_what_its_workload_may(capfd: pytest.CaptureFixture[str]) -> None:
    with started() as sandbox:
        status = Path(f"/proc/{pid_of(sandbox)}/status").read_text()
        command = Path(f"/proc/{pid_of(sandbox)}/cmdline").read_bytes().decode().split("\0")
        uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
        assert "0" not in uids
        assert "Seccomp:\t2" in status
        assert command[command.index("-sandbox") + 1].startswith("on,")
        assert "-vnc" not in command
        assert "-spice" not in command
        assert not any("usb" in part and "usb=off" not in part for part in command)
        assert sandbox.record.data["accelerator"] == ("kvm" if "kvm" in command[command.index("-accel") + 1] else "tcg")

        # Of the machine's secrets, the workload's user sees none.
        for path in ("settings", "host_key", "authorized_keys"):
            assert sandbox.exec(["cat", f"/usr/lib/sandbox-vm/etc/{path}"]).exit_code != 0
        assert sandbox.exec(["sh", "-c", "echo forged > /dev/ttyS0"]).exit_code != 0
        assert sandbox.exec(["sh", "-c", "echo forged > /dev/kmsg"]).exit_code != 0
        assert sandbox.exec(["dd", "if=/dev/vda", "count=1"]).exit_code != 0
        files = [sandbox.record.directory / name for name in (CLIENT_KEY, "initrd", CONSOLE_LOG, "log")]
        assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"] * 4

        status = sandbox.exec(["cat", "/proc/self/status"]).stdout.decode()
        assert "CapBnd:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert sandbox.exec(["cat", "/proc/self/cgroup"]).stdout.startswith(b"0::/sandbox/exec-")
    assert capfd.readouterr().err == ""  # libvirt prints nothing of its own


def test_the_limit_on_processes_holds() -> None:
    script = (
        "import os, time\nn = 0\ntry:\n while n < 200:\n  if os.fork() == 0: time.sleep(20); os._exit(0)\n  n += 1\n"
        "except BlockingIOError: pass\nprint(n)"
    )
    with started(replace(SPEC, pids_limit=24)) as sandbox:
        assert sandbox.limits().pids == 24
        made = int(sandbox.exec(["python3", "-I", "-S", "-c", script], timeout=60).stdout)
        assert 15 < made < 24
        # SSH is outside the limit: the host can still ask, although nothing more starts inside.
        assert (sandbox.stats().pids or 0) >= made
        assert sandbox.state().running


def test_a_guest_with_another_key_is_not_talked_to() -> None:
    with started() as sandbox:
        record = sandbox.record
        impostor = Guest(record.address, make_keys().host_public, record.directory / CLIENT_KEY)
        with pytest.raises(EngineError, match="does not answer over SSH"):
            impostor.run("true", 30)
        assert sandbox.exec(["true"]).exit_code == 0


@pytest.mark.parametrize(("script", "code"), [("echo out; echo err >&2; exit 7", 7), ("kill -USR1 $$", 138)])
def test_the_exit_code_and_the_log_outlive_the_machine(script: str, code: int) -> None:
    with started(shell(script)) as sandbox:
        assert sandbox.wait(30) == code
        assert sandbox.state().exit_code == code
        wait_until_forgotten(sandbox.record.id)
        if code == 7:
            assert b"".join(sandbox.logs()) == b"out\nerr\n"
        again = level().adopt(sandbox.record)
        assert again.wait(0) == code
        with pytest.raises(EngineError, match="not running"):
            again.exec(["true"])


def test_a_log_is_followed_to_its_end() -> None:
    with started(shell("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done")) as sandbox:
        assert b"".join(sandbox.logs(follow=True)) == b"1\n2\n3\n4\n5\n"


def wait_until_ready(sandbox: VmSandbox) -> None:
    """The script has set its trap once it has said so."""
    deadline = time.monotonic() + 30
    while b"ready" not in b"".join(sandbox.logs()):
        assert time.monotonic() < deadline, "the workload did not come up"
        time.sleep(0.02)


def test_stop_asks_first_and_then_switches_off() -> None:
    with started(shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")) as sandbox:
        wait_until_ready(sandbox)
        assert sandbox.stop(20) == 3
        assert b"".join(sandbox.logs()) == b"ready\nbye\n"
    with started(shell("trap '' TERM; echo ready; while :; do sleep 0.1; done")) as sandbox:
        wait_until_ready(sandbox)
        begin = time.monotonic()
        assert sandbox.stop(0.5) == 137
        assert time.monotonic() - begin < 10
        assert not sandbox.state().running


def test_a_killed_qemu_leaves_nothing_but_the_record() -> None:
    with started() as sandbox:
        os.kill(pid_of(sandbox), signal.SIGKILL)
        assert sandbox.wait(10) is None
        assert not sandbox.state().running
        sandbox.destroy()
        assert not Path(f"/sys/class/net/{network.interface_name(sandbox.record.id)}").exists()
        assert vm_domain.log_files(sandbox.record.id) == []


def test_a_guest_that_cannot_boot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "MIN_MEMORY", 1)
    with created(replace(SPEC, memory=68 * MIB)) as sandbox:
        with pytest.raises(EngineError) as caught:
            sandbox.boot(time.monotonic() + BOOT_TIMEOUT)
        assert "ended before it said 'boot'" in caught.value.message
        assert "panic" in (caught.value.hint or "")


def test_the_sweep_finds_what_the_store_forgot() -> None:
    with created(SPEC) as sandbox:
        ident = sandbox.record.id
        others = [found for found in level().hypervisor.idents() if found != ident]
        others += [path.name[4:16] for path in vm_domain.log_files() if ident not in path.name]
        name = f"virtual machine sbx-{ident}"
        assert name in level().sweep(others, dry_run=True)
        assert level().hypervisor.exists(ident)
        assert name in level().sweep(others, dry_run=False)
        assert not level().hypervisor.exists(ident)
        assert vm_domain.log_files(ident) == []
        assert not [line for line in level().sweep(others, dry_run=True) if ident in line]


def test_a_fraction_of_a_processor_is_read_back() -> None:
    with created(replace(SPEC, cpus=0.5, cpuset="0")) as sandbox:
        live = level().hypervisor.live(sandbox.record.id)
        assert live is not None
        assert (live.vcpus, live.quota) == (1, 0.5)
        threads = subprocess.run(
            ["taskset", "-apc", str(pid_of(sandbox))], capture_output=True, text=True, check=True
        ).stdout
        assert all(line.endswith(": 0") for line in threads.splitlines())


def test_what_libvirt_refuses_is_one_line() -> None:
    with pytest.raises(EngineError, match="the virtual machine could not be created: "):
        level().hypervisor.create_paused("<domain/>")
