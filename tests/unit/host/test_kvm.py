"""The test guest: its bytes match its source, an emulated CPU runs it, and a failure is reported as one."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sandbox.host import kvm
from sandbox.host.programs import which

_SOURCE = Path(kvm.__file__).with_name("kvm_guest.S")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def qemu() -> str:
    path = which(kvm.QEMU)
    if path is None:
        pytest.skip("QEMU is not installed")
    return path


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="there is no assembler (binutils)")
def test_the_bytes_are_the_source(tmp_path: Path) -> None:
    target, binary = tmp_path / "guest.o", tmp_path / "guest.bin"
    subprocess.run(["as", str(_SOURCE), "-o", str(target)], check=True)
    subprocess.run(["ld", "-Ttext", "0", "--oformat", "binary", str(target), "-o", str(binary)], check=True)
    assert binary.read_bytes() == kvm.GUEST


def test_the_rom_jumps_from_the_reset_vector_to_the_guest() -> None:
    rom = kvm.rom()
    assert len(rom) == 0x10000
    assert rom.startswith(kvm.GUEST)
    assert rom[0xFFF0] == 0xE9  # jmp rel16
    assert (0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little")) & 0xFFFF == 0


def test_a_machine_that_works_runs_it(qemu: str) -> None:
    found = kvm.run_guest(qemu, accelerator="tcg", cpu="max", deadline=60)
    assert found.works, found.reason


def test_a_processor_without_what_it_needs_does_not(qemu: str) -> None:
    found = kvm.run_guest(qemu, accelerator="tcg", cpu="qemu32", deadline=60)  # no long mode
    assert not found.works
    assert "fault" in found.reason


def test_qemu_that_refuses_is_quoted(qemu: str) -> None:
    found = kvm.run_guest(qemu, accelerator="tcg", cpu="no-such-cpu")
    assert not found.works
    assert "no-such-cpu" in found.reason
    assert "\n" not in found.reason


def test_a_guest_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    slow = tmp_path / "qemu"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n", encoding="ascii")
    slow.chmod(0o755)
    begin = time.monotonic()
    found = kvm.run_guest(str(slow), deadline=0.5)
    assert not found.works
    assert time.monotonic() - begin < 5
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_verdict_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = []

    def run(_: str) -> kvm.Verdict:
        runs.append(1)
        return kvm.Verdict(True, "ran")

    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    monkeypatch.setattr(kvm, "which", lambda _: str(device))
    monkeypatch.setattr(kvm, "run_guest", run)
    assert kvm.verdict() == kvm.verdict() == kvm.Verdict(True, "ran")
    assert len(runs) == 1
    device.unlink()
    device.write_bytes(b"reloaded")  # the module was reloaded, with other parameters perhaps
    assert kvm.verdict().works
    assert len(runs) == 2


def test_no_device_and_no_qemu_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert "there is no" in kvm.verdict().reason
    assert "modprobe" in kvm.finding().remedy
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm, "which", lambda _: None)
    assert "not installed" in kvm.verdict().reason


@pytest.mark.slow
def test_a_kvm_that_emulates_does_not_pass_for_one_that_runs(qemu: str) -> None:
    """With a plain CPU model, the test only depends on whether guest code runs at the CPU's speed."""
    if not kvm.DEVICE.exists() or kvm.run_guest(qemu).works:
        pytest.skip("KVM runs guests here, or is not there")
    assert not kvm.run_guest(qemu, cpu="qemu64", deadline=5).works
