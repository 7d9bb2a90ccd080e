"""The seccomp filter: interpreted here for every system call number, then run by the kernel on a child."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.isolation.docker import seccomp as docker_seccomp
from sandbox.kernel import seccomp
from tools.seccomp import __main__ as maker
from tools.seccomp import compiler, docker, policy, table

ROOT = Path(__file__).resolve().parents[3]
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
TABLES = {"x86_64": table.X86_64, "aarch64": table.AARCH64}
ERRNO = 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS


def interpret(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> tuple[int, int]:
    """Interpret a filter as classic BPF defines it; return the kernel's action and how many instructions it ran."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    at, steps, accumulator = 0, 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, at * 8)
        at, steps = at + 1, steps + 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x06:
                return operand, steps
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_number_gets_what_the_policy_says(machine: str) -> None:
    program = seccomp.build(machine)
    names = {number: name for name, number in TABLES[machine].items()}
    allowed = compiler.names(machine)
    longest = 0
    for number in range(max(names) + 1):
        name = names.get(number, "")
        # With a first argument of 0 every checked call is allowed, except those that create a socket of that family.
        arguments = (1,) if name in ("socket", "socketpair") else ()
        verdict, steps = interpret(program, number, ARCH[machine], arguments)
        longest = max(longest, steps)
        if name == "clone3":
            assert verdict == ENOSYS
        elif name in allowed:
            assert verdict == compiler.ALLOW, name
        else:
            assert verdict == EPERM, name
    assert longest < 24


def test_what_is_shipped_is_what_the_list_compiles_to() -> None:
    files = maker.files()
    assert {path: path.read_bytes() for path in files} == files
    shipped = {*(ROOT / "sandbox").rglob("seccomp-*.hex"), *(ROOT / "sandbox").rglob("*seccomp*.json")}
    assert shipped == set(files), "nothing is shipped that the list is not the source of"
    for machine in TABLES:
        assert seccomp.build(machine) == compiler.program(machine)
    assert docker_seccomp.profile() == docker.profile()


def test_the_docs_say_how_many_pass() -> None:
    text = (ROOT / "docs" / "hardening.md").read_text(encoding="utf-8")
    assert f"| `namespace` | {len(compiler.names('x86_64'))} |" in text
    assert f"of {len(table.X86_64)} |" in text


def test_a_start_neither_reads_the_list_nor_compiles() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from sandbox.kernel import seccomp\n"
        "assert len(seccomp.build('x86_64')) > 800\n"
        "print([name for name in sys.modules if name.startswith('tools')])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT)], capture_output=True, timeout=30, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_call_is_accounted_for(machine: str) -> None:
    passing = policy.ALLOWED | compiler.CHECKED.keys()
    refused = set(" ".join(policy.REFUSED.values()).split()) | policy.NOT_IMPLEMENTED
    assert not passing & refused
    assert set(TABLES[machine]) <= passing | refused
    assert passing | refused <= set(table.X86_64) | set(table.AARCH64)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_no_number_outside_the_table_passes(number: int, argument: int) -> None:
    verdict, _ = interpret(seccomp.build("x86_64"), number, ARCH["x86_64"], (argument, argument))
    if number not in table.X86_64.values():
        assert verdict != compiler.ALLOW
    if number & compiler.X32_BIT:
        assert verdict == EPERM


def test_newer_calls_are_absent_and_other_machines_die() -> None:
    program = seccomp.build("x86_64")
    assert interpret(program, 500, ARCH["x86_64"])[0] == ENOSYS
    assert interpret(program, 0xFFFFFFFF, ARCH["x86_64"])[0] == EPERM
    for arch in (0x40000003, ARCH["aarch64"], 0):  # i386, another machine, none
        assert interpret(program, 0, arch)[0] == compiler.KILL_PROCESS


@pytest.mark.parametrize(
    ("name", "arguments", "verdict"),
    [
        ("clone", (0x11,), compiler.ALLOW),  # fork
        ("clone", (0x003D0F00,), compiler.ALLOW),  # pthread_create
        *(("clone", (flag | 0x11,), EPERM) for flag in (1 << 17, 1 << 25, *(1 << bit for bit in range(26, 31)))),
        ("socket", (2, 1), compiler.ALLOW),
        ("socket", (16, 3), compiler.ALLOW),  # netlink: getifaddrs needs it
        ("socket", (1, 1), compiler.ALLOW),
        ("socket", (10, 1), compiler.ALLOW),
        # The kernel drops the high half, and makes an AF_INET socket.
        ("socket", (2 | 1 << 32, 1), compiler.ALLOW),
        ("socket", (38, 5), EPERM),
        ("socket", (40, 1), EPERM),
        ("socket", (38 | 1 << 32, 5), EPERM),
        *(("socket", (family, 3), EPERM) for family in (0, 3, 9, 11, 15, 17, 29, 31, 44, 46, 2**32 - 1)),
        ("socketpair", (1, 1), compiler.ALLOW),
        ("socketpair", (2, 1), EPERM),
        ("socketpair", (40, 5), EPERM),
        ("personality", (0,), compiler.ALLOW),
        ("personality", (0xFFFFFFFF,), compiler.ALLOW),
        ("personality", (0x0400000,), EPERM),
        ("ioctl", (0, 0x5401), compiler.ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x5412 | 1 << 32), EPERM),
        ("ioctl", (0, 0x541C), EPERM),
    ],
)
def test_arguments(name: str, arguments: tuple[int, ...], verdict: int) -> None:
    for machine, numbers in TABLES.items():
        assert interpret(seccomp.build(machine), numbers[name], ARCH[machine], arguments)[0] == verdict


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64") as caught:
        seccomp.build("riscv64")
    assert caught.value.errno == errno.ENOTSUP


CHILD = r"""
import ctypes, errno, json, os, signal, socket, sys, threading
sys.path.insert(0, sys.argv[1])
from sandbox.kernel import caps, seccomp
from tools.seccomp import table
numbers = {"x86_64": table.X86_64, "aarch64": table.AARCH64}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
null = os.open("/dev/null", os.O_RDWR)

def call(name, *arguments):
    number = name if isinstance(name, int) else numbers[name]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(item) for item in arguments])
    if result == 0 and name == "clone":
        os._exit(0)
    if result > 0 and name == "clone":
        os.waitpid(result, 0)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"

def observe():
    return {
        "fork": call("clone", signal.SIGCHLD),
        "clone(NEWUTS)": call("clone", 0x04000000 | signal.SIGCHLD),
        "clone(NEWUSER)": call("clone", 0x10000000 | signal.SIGCHLD),
        "clone3": call("clone3", 0, 0),
        "unshare": call("unshare", 0),
        "setns": call("setns", null, 0),
        "mount": call("mount", 0, 0, 0, 0, 0),
        "keyctl": call("keyctl", 0, 0xFFFFFFFD, 1),
        "bpf": call("bpf", 0, 0, 0),
        "io_uring_setup": call("io_uring_setup", 0, 0),
        "userfaultfd": call("userfaultfd", 0xFFFF),
        "perf_event_open": call("perf_event_open", 0, 0, 0, 0, 0),
        "open_by_handle_at": call("open_by_handle_at", null, 0, 0),
        "swapon": call("swapon", 0, 0),
        "personality": call("personality", 0xFFFFFFFF),
        "personality(READ_IMPLIES_EXEC)": call("personality", 0x0400000),
        "TCGETS": call("ioctl", null, 0x5401, 0),
        "TIOCSTI": call("ioctl", null, 0x5412, 0),
        "TIOCSTI, high bits": call("ioctl", null, 0x5412 | 1 << 32, 0),
        "number of the future": call(1000),
        "x32": call(0x40000000 | 39),
    }

before = observe()
libc.personality(0)
try:
    seccomp.install(seccomp.build())
    early = "installed"
except OSError as error:
    early = errno.errorcode[error.errno]
caps.set_no_new_privs()
seccomp.install(seccomp.build())
after = observe()
thread = threading.Thread(target=lambda: None)
thread.start(); thread.join()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
import subprocess
ran = subprocess.run(["/bin/true"]).returncode
print(json.dumps({"before": before, "after": after, "early": early, "ran": ran, "status": caps.status()}))
"""


def test_the_kernel_refuses_inside_what_it_did_not_refuse_outside() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(ROOT)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    refused = {
        "clone(NEWUTS)",
        "clone(NEWUSER)",
        "unshare",
        "setns",
        "mount",
        "keyctl",
        "bpf",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "swapon",
        "personality(READ_IMPLIES_EXEC)",
        "TIOCSTI",
        "TIOCSTI, high bits",
    }
    root_only = {"clone(NEWUTS)", "swapon", "mount", "bpf", "open_by_handle_at", "perf_event_open", "clone(NEWUSER)"}
    for what in refused:
        if os.geteuid() == 0 or what not in root_only:
            assert seen["before"][what] != "EPERM", f"no control: {what} is refused outside the filter too"
        assert seen["after"][what] == "EPERM", what
    assert seen["after"]["clone3"] == "ENOSYS" != seen["before"]["clone3"]
    assert seen["after"]["number of the future"] == "ENOSYS"
    assert seen["after"]["x32"] == ("EPERM" if os.uname().machine == "x86_64" else "ENOSYS")
    for what in ("fork", "personality", "TCGETS"):
        assert seen["after"][what] == seen["before"][what]
    assert seen["early"] == "EACCES"
    assert seen["ran"] == 0
    assert (seen["status"]["Seccomp"], seen["status"]["NoNewPrivs"]) == (2, 1)


# mov eax, 20 (getpid of i386); int 0x80; ret
WRONG_ARCH = r"""
import ctypes, mmap, sys
sys.path.insert(0, sys.argv[1])
from sandbox.kernel import caps, seccomp
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
if sys.argv[2] == "filtered":
    caps.set_no_new_privs()
    seccomp.install(seccomp.build())
sys.exit(0 if call() > 0 else 3)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="i386 calls exist on x86_64 alone")
def test_a_call_of_another_architecture_kills() -> None:
    outcome = {
        how: subprocess.run(
            [sys.executable, "-I", "-c", WRONG_ARCH, str(ROOT), how], capture_output=True, timeout=30, check=False
        ).returncode
        for how in ("plain", "filtered")
    }
    if outcome["plain"] != 0:
        pytest.skip("this kernel has no i386 calls at all")
    assert outcome["filtered"] == -signal.SIGSYS


@pytest.mark.parametrize("program", [b"", b"1234567", bytes(8 * 4097)])
def test_what_is_no_program_is_refused(program: bytes) -> None:
    code = (
        "import sys, errno; sys.path.insert(0, sys.argv[1])\n"
        "from sandbox.kernel import caps, seccomp\n"
        "caps.set_no_new_privs()\n"
        "try: seccomp.install(bytes.fromhex(sys.argv[2]))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(ROOT), program.hex()], timeout=30, check=False)
    assert done.returncode == errno.EINVAL
