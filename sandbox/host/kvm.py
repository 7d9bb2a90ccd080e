"""Check that KVM runs a guest, by running a small one: `kvm_guest.S`, whose first lines describe it.

The existence of /dev/kvm and a successful KVM_CREATE_VM are not enough: on a machine that is itself a guest, KVM may
stop at the first instruction that it does not support, or emulate every instruction.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.host import verdicts
from sandbox.host.finding import Finding
from sandbox.host.programs import which
from sandbox.state.store import named_lock

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
CPU = "host"
"""The CPU model of the test guest, and of machines under KVM."""
DEADLINE = 10.0
"""Seconds. On hardware the guest's loop takes about 0.1, and QEMU about 0.3 to start."""
_EXPECTED = 0x2A << 1 | 1
"""isa-debug-exit makes QEMU exit with twice the guest's value plus one (hw/misc/debugexit.c)."""
_ROM_SIZE = 0x10000
_RESET_VECTOR = 0xFFF0

GUEST = bytes.fromhex(
    "fa2e660f011628020f20c00c010f22c066ea18000f00080066b810008ed88ec08ed0fc31c0bf00100000b900240000f3abc7050010000007"
    "200000c7050020000007300000c7051820000003400000c7050030000087000000c705b84f00009b00e0fe0f20e083c8200f22e0b8001000"
    "000f22d8b9800000c00f320d000100000f300f20c00d000000800f22c0ea94000f001800bc00900000bee8010f00bf00600000b940000000"
    "f3a40f0114252e020f00c70425047000000090000066b830000f00d8b8aa010f00bf60500000e8c0000000b8b4010f00bfe0500000e8b100"
    "0000b8d5010f00bf00520000e8a2000000b8c8010f00bf00580000e893000000800c2505580000600f011c2538020f0031db0f0bc7042500"
    "00200078563412813c250000200078563412755d6a236800a000006a026a2b683e010f0048cfcd800f0bb0ffe621e6a1bf0000e0fec787f0"
    "000000ff010000c787e00300000b000000c7872003000020000200c7878003000040420f00b900c2eb0bfbffc975fcfa83fb0f7504b02ae6"
    "f40f011c2542020f000f0b66890766c74702180066c74704008ec1e81066894706c380cb01488304240248cf80cb02c70425083000008300"
    "20004883c40848cf80cb04bc00900000e96dffffff80cb08c787b00000000000000048cf0f1f40000000000000000000ffff0000009bcf00"
    "ffff00000093cf00ffff0000009baf00ffff000000f3cf00ffff000000fbaf00670000700089000000000000000000003f00e8010f003f00"
    "00600000000000000f08005000000000000000000000000000000000"
)
"""kvm_guest.S, assembled."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the test.

    Attributes:
        works: whether the guest ran to its end, and correctly.
        reason: why KVM does not work, or how it was tested.
    """

    works: bool
    reason: str


def rom() -> bytes:
    """Return the guest as the 64 KiB below 4 GiB: its code at the bottom, and a jump to it at the reset vector."""
    jump = b"\xe9" + ((-(_RESET_VECTOR + 3)) & 0xFFFF).to_bytes(2, "little")
    return (GUEST.ljust(_RESET_VECTOR, b"\0") + jump).ljust(_ROM_SIZE, b"\0")


def verdict() -> Verdict:
    """Return whether KVM runs guests on this host: the remembered result, or a new test, which may take `DEADLINE`."""
    qemu = which(QEMU)
    if not DEVICE.exists():
        return Verdict(False, f"there is no {DEVICE}: the processor, firmware or hypervisor does not provide it")
    if qemu is None:
        return Verdict(False, f"it cannot be tried, because {QEMU} is not installed")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, f"{DEVICE} cannot be opened by this user")
    key = f"{CPU}; {verdicts.file_identity(qemu)}; {verdicts.file_identity(DEVICE)}"
    known = _recall(key)
    if known is not None:
        return known
    try:
        # Of two commands at once, the second waits for the result of the first one's test.
        with named_lock("kvm"):
            found = _recall(key) or run_guest(qemu)
            verdicts.remember("kvm", key, asdict(found))
            return found
    except SandboxError:  # the state directory is not writable, so there is no lock, and nothing is remembered
        return run_guest(qemu)


def _recall(key: str) -> Verdict | None:
    known = verdicts.recall("kvm", key)
    try:
        return None if known is None else Verdict(bool(known["works"]), str(known["reason"]))
    except KeyError:
        return None


def run_guest(qemu: str, *, accelerator: str = "kvm", cpu: str = CPU, deadline: float = DEADLINE) -> Verdict:
    """Run the guest once.

    Args:
        qemu: path of QEMU.
        accelerator: QEMU's name of the accelerator.
        cpu: QEMU's name of the CPU model.
        deadline: seconds after which QEMU is killed.
    """
    descriptor = os.memfd_create("sandbox-kvm-guest")
    try:
        os.write(descriptor, rom())
        argv = [
            # If this command is killed by SIGKILL, QEMU must end too, as a guest that hangs would hang for ever.
            *("setpriv", "--pdeathsig", "KILL", qemu),
            *("-machine", f"pc,accel={accelerator}", "-cpu", cpu, "-m", "16"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "none"),
            *("-no-reboot", "-sandbox", "on", "-bios", f"/proc/self/fd/{descriptor}"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        ]
        begin = time.monotonic()
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(descriptor,),
        ) as process:
            try:
                _, errors = process.communicate(timeout=deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return Verdict(
                    False,
                    f"a test guest that takes 0.1 s on hardware did not finish within {deadline:.0f} s: "
                    "KVM emulates it or hangs (common inside another virtual machine)",
                )
        return _judge(process.returncode, errors.decode(errors="replace"), time.monotonic() - begin)
    except OSError as error:
        return Verdict(False, f"QEMU could not be run: {error.strerror}")
    finally:
        os.close(descriptor)


def _judge(code: int, words: str, seconds: float) -> Verdict:
    if code == _EXPECTED:
        return Verdict(True, f"ran a test guest in {seconds:.1f} s")
    # QEMU may print a source line (of an assertion) after its message.
    lines = [
        line.removeprefix(f"{QEMU}: ").removeprefix("error: ")
        for line in words.splitlines()
        if line.strip() and "warning:" not in line
    ]
    if lines:
        return Verdict(False, f"QEMU cannot run a guest under KVM: {lines[0]}")
    if code == 0:
        return Verdict(False, "the test guest ran into a fault that does not occur on hardware")
    return Verdict(False, f"QEMU exited with {code} under KVM")


def finding() -> Finding:
    """Return the result as a capability."""
    found = verdict()
    if found.works:
        return Finding("kvm", True, found.reason)
    if not DEVICE.exists():
        return Finding(
            "kvm",
            False,
            found.reason,
            "modprobe kvm_intel, or kvm_amd; a virtual machine needs nesting",
        )
    return Finding("kvm", False, found.reason, "use a machine whose KVM runs guests")
