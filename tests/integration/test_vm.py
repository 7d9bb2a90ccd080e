"""`vm` on a real libvirtd and QEMU: what the contract does not ask of every level."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SpecError
from sandbox.isolation.vm import domain, driver
from sandbox.isolation.vm.sandbox import VmSandbox
from sandbox.network import lab
from sandbox.spec import MIB, SandboxSpec
from tests.integration.machines import BOOT_TIMEOUT, SPEC, created, level, pid_of, shell, started

pytestmark = pytest.mark.level("vm")


def wait_until_forgotten(ident: str) -> None:
    """libvirt hears of QEMU's end a moment after the process has gone."""
    deadline = time.monotonic() + 10
    while level().hypervisor.exists(ident):
        assert time.monotonic() < deadline, "libvirt still knows the machine"
        time.sleep(0.02)


def wait_for_words(sandbox: VmSandbox, words: bytes) -> None:
    """A script has set its trap, say, once it has said so."""
    deadline = time.monotonic() + 30
    while words not in b"".join(sandbox.logs()):
        assert time.monotonic() < deadline, "the workload did not come up"
        time.sleep(0.02)


def write_application(home: Path) -> None:
    (home / "data").mkdir()
    (home / "data" / "words").write_text("from the application\n")
    (home / "run").write_text(
        "#!/bin/sh\npwd; cat data/words; ls -ln /app/data/words; echo x >>data/words; exec sleep 1000\n"
    )
    (home / "run").chmod(0o755)
    (home / "link").symlink_to("data/words")


def test_an_application_comes_along_read_only() -> None:
    """With a size of its own for /tmp, and the log's tail; one machine for all of it."""
    spec = replace(SPEC, argv=("./run",), app=True, workdir="/app", disk=4 * MIB)
    with started(spec, write_application) as sandbox:
        wait_for_words(sandbox, b"Permission denied")
        lines = b"".join(sandbox.logs()).splitlines()
        assert lines[:2] == [b"/app", b"from the application"]
        assert lines[2].split()[:4] == [b"-rw-r--r--", b"1", b"0", b"0"]
        assert sandbox.exec(["cat", "/app/link"]).stdout == b"from the application\n"
        assert sandbox.exec(["pwd"]).stdout == b"/app\n"
        # A root without capabilities is still the files' owner: what holds is the mount.
        assert b"Read-only" in sandbox.exec(["sh", "-c", "echo x >/app/new"], root=True).stderr
        assert b"".join(sandbox.logs(tail=1)) == lines[-1] + b"\n"
        assert sandbox.limits().disk == 4 * MIB
        assert b"".join(sandbox.logs(since=0.0)).splitlines() == lines
        assert list(sandbox.logs(until=1.0)) == []
        # Who reads a command's output goes away, and so does the command.
        unread, output = os.pipe()
        os.close(unread)
        assert sandbox.attach(["yes"], stdin=None, stdout=output, stderr=output).wait() == 128 + signal.SIGPIPE
        os.close(output)
        assert sandbox.exec(["sh", "-c", "ls -d /sys/fs/cgroup/sandbox/exec-* | wc -l"]).stdout == b"1\n"
        # libvirtd is not there, for a restart say: what does not need it goes on.
        hypervisor = level().hypervisor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hypervisor, "uri", "qemu+unix:///system?socket=/nonexistent")
            hypervisor._connection.close()
            assert sandbox.state().running
            assert sandbox.exec(["true"]).exit_code == 0
            with pytest.raises(EngineError, match="the virtual machine cannot be inspected: "):
                sandbox.limits()
        assert sandbox.limits().memory == SPEC.memory
        # Longer than what the SSH server takes at once, and an argument that is not UTF-8.
        many = ["x" * 50_000, os.fsdecode(b"\xff")]
        assert sandbox.exec(["printf", "%s\\0", *many]).stdout == b"".join(os.fsencode(one) + b"\0" for one in many)


def test_an_application_that_does_not_fit_is_refused() -> None:
    def write(home: Path) -> None:
        (home / "large").write_bytes(bytes(20 * MIB))

    with pytest.raises(SpecError, match="too little") as caught, created(replace(SPEC, app=True), write):
        pass
    assert caught.value.hint == "at least 137m"


def test_a_machine_that_dies_ends_what_is_attached() -> None:
    """Also a paused one; libvirt has forgotten it, and `destroy` clears the rest away."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with started() as sandbox:
            attached = sandbox.attach(["sleep", "1000"], stdin=None, stdout=null, stderr=null)
            sandbox.pause()
            assert sandbox.state().paused
            with pytest.raises(EngineError, match="is paused"):
                sandbox.kill(signal.SIGTERM)
            os.kill(pid_of(sandbox), signal.SIGKILL)
            with pytest.raises(EngineError, match="ended before the command did"):
                attached.wait()
            attached.close()
            assert sandbox.wait(10) is None
            state = sandbox.state()
            assert (state.running, state.paused) == (False, False)
            with pytest.raises(EngineError, match="not running"):
                sandbox.kill(signal.SIGTERM)
            sandbox.remove()
            assert not Path(f"/sys/class/net/{lab.interface_name(sandbox.record.id)}").exists()
            assert domain.log_files(sandbox.record.id) == []
    finally:
        os.close(null)


@pytest.mark.parametrize(("script", "code"), [("echo out; echo err >&2; exit 7", 7), ("kill -USR1 $$", 138)])
def test_the_exit_code_and_the_log_outlive_the_machine(script: str, code: int) -> None:
    with started(shell(script)) as sandbox:
        assert sandbox.wait(30) == code
        assert sandbox.state().exit_code == code
        wait_until_forgotten(sandbox.record.id)
        if code == 7:
            assert sorted((piece.stream, piece.data) for piece in sandbox.pieces()) == [(1, b"out\n"), (2, b"err\n")]
        again = level().adopt(sandbox.record)
        assert again.wait(0) == code
        with pytest.raises(EngineError, match="not running"):
            again.exec(["true"])


WRITER = """
import os, random, sys
random.seed(7)
data = random.randbytes(20 << 20) + b"x" * (1 << 20) + bytes(1 << 20) + b"the end"
view = memoryview(data)
while view:
    view = view[os.write(1, view[:random.randrange(1, 1 << 18)]):]
for number in range(2000):
    os.write(2, b"%d " % number)
open("/dev/stdout", "wb", buffering=0).write(b" and more")
open("/dev/fd/2", "wb", buffering=0).write(b"as well")
"""
"""Random bytes, a line of 1 MiB, NULs, and an end without a line feed."""


def test_output_arrives_whole_and_apart() -> None:
    """Faster than 5 MB/s, the processor emulated or not; a slow reader slows the workload and loses nothing."""
    generator = random.Random(7)
    wanted = generator.randbytes(20 << 20) + b"x" * (1 << 20) + bytes(1 << 20) + b"the end and more"
    with started(replace(SPEC, argv=("/usr/bin/python3", "-I", "-S", "-c", WRITER), memory=256 * MIB)) as sandbox:
        found = {1: bytearray(), 2: bytearray()}
        first = 0.0
        for piece in sandbox.output():
            first = first or time.monotonic()
            found[piece.stream] += piece.data
        took = time.monotonic() - first
        assert found[1] == wanted
        assert found[2] == b"".join(b"%d " % number for number in range(2000)) + b"as well"
        assert len(wanted) / took > 5e6, f"{len(wanted) / took / 1e6:.1f} MB/s"
        assert sandbox.wait(30) == 0
        assert b"".join(piece.data for piece in sandbox.pieces() if piece.stream == 1) == wanted


def test_a_slow_reader_loses_nothing() -> None:
    """More than the log keeps, and than the machine can hold back."""
    size = 100 * MIB
    with started(shell(f"head -c {size} /dev/zero; echo end")) as sandbox:
        count = 0
        for piece in sandbox.output():
            count += len(piece.data)
            if count < 4 * MIB:
                time.sleep(0.05)
        assert count == size + 4
        assert sandbox.wait(30) == 0


def test_a_workload_whose_keeper_was_killed_gets_sigpipe() -> None:
    with started(shell("trap '' TERM; echo here; while sleep 0.05; do echo more; done")) as sandbox:
        wait_for_words(sandbox, b"here")
        assert sandbox.keeper is not None
        os.kill(sandbox.keeper.pid, signal.SIGKILL)
        assert sandbox.wait(30) == 128 + signal.SIGPIPE
        assert b"".join(sandbox.logs()).startswith(b"here\n")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (replace(SPEC, argv=("no-such-command",)), CommandNotFoundError),
        (replace(SPEC, argv=("/etc/passwd",)), CannotInvokeError),
        (replace(SPEC, workdir="/nowhere"), CannotInvokeError),
    ],
)
def test_what_cannot_be_started_is_an_error_and_no_output(spec: SandboxSpec, error: type[Exception]) -> None:
    with created(spec) as sandbox:
        sandbox.boot(time.monotonic() + BOOT_TIMEOUT)
        with pytest.raises(error):
            sandbox.start()
        assert list(sandbox.output()) == []


def test_a_log_is_followed_to_its_end() -> None:
    with started(shell("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done")) as sandbox:
        assert b"".join(sandbox.logs(follow=True)) == b"1\n2\n3\n4\n5\n"


def test_stop_asks_first_and_then_switches_off() -> None:
    with started(shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")) as sandbox:
        wait_for_words(sandbox, b"ready")
        assert sandbox.stop(20) == 3
        assert b"".join(sandbox.logs()) == b"ready\nbye\n"
    with started(shell("trap '' TERM; echo ready; while :; do sleep 0.1; done")) as sandbox:
        wait_for_words(sandbox, b"ready")
        begin = time.monotonic()
        assert sandbox.stop(0.5) == 137
        assert time.monotonic() - begin < 10
        assert not sandbox.state().running


def test_a_guest_that_cannot_boot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MIN_MEMORY", 1)
    with created(replace(SPEC, memory=68 * MIB)) as sandbox:
        with pytest.raises(EngineError) as caught:
            sandbox.boot(time.monotonic() + BOOT_TIMEOUT)
        assert "ended before it reported 'boot'" in caught.value.message
        assert "panic" in (caught.value.hint or "")


def test_the_sweep_finds_what_the_store_forgot() -> None:
    with created(SPEC) as sandbox:
        ident = sandbox.record.id
        others = [found for found in level().hypervisor.idents() if found != ident]
        others += [path.name[4:16] for path in domain.log_files() if ident not in path.name]
        name = f"virtual machine sbx-{ident}"
        assert name in level().prune(others, dry_run=True)
        assert level().hypervisor.exists(ident)
        assert name in level().prune(others, dry_run=False)
        assert not level().hypervisor.exists(ident)
        assert domain.log_files(ident) == []
        assert not [line for line in level().prune(others, dry_run=True) if ident in line]


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
