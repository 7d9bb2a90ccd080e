"""A seccomp filter, compiled from `syscall_policy` to classic BPF and installed with seccomp(2).

The program looks at the architecture, the call's number and, for four calls, the low half of one argument. Numbers
are found by binary search over ranges, so that a call costs about seven comparisons; and since most verdicts depend
on the number alone, the kernel (from 5.11) remembers them per call and does not even run the program.

Layout of the data it reads: struct seccomp_data, linux/seccomp.h. Instructions: Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from itertools import pairwise
from operator import itemgetter

from sandbox.kernel import syscall_policy, syscall_table

# Offsets in struct seccomp_data. An argument has 64 bits; its low half is first, both machines being little endian.
_NR, _ARCH, _ARGS = 0, 4, 16

# Instruction classes and modes, linux/bpf_common.h.
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_RETURN = 0x06  # BPF_RET | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_MAX_SHORT_JUMP = 255
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# Actions, linux/seccomp.h.
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM = _ERRNO | errno.EPERM
_ENOSYS = _ERRNO | errno.ENOSYS
_EAFNOSUPPORT = _ERRNO | errno.EAFNOSUPPORT

X32_BIT = 0x40000000
"""Set in the number of a call through the x32 ABI, whose numbers mean other calls (arch/x86/entry/syscalls)."""

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (clone(2)). CLONE_NEWTIME shares a bit with the
exit signal and can only be given to clone3 and unshare."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, each with UNAME26 or without, and "only ask" (personality(2)). Not READ_IMPLIES_EXEC, nor
what switches address randomisation off."""
REFUSED_IOCTLS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX type into the terminal that the sandbox was started from (ioctl_tty(2))."""
REFUSED_FAMILIES = (38, 40)
"""AF_ALG: the kernel's cryptography, a long history of holes. AF_VSOCK: reaches the hypervisor, and is in no network
namespace."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: struct sock_filter."""

_MACHINES = {
    "x86_64": (0xC000003E, syscall_table.X86_64, 317),
    "aarch64": (0xC00000B7, syscall_table.AARCH64, 277),
}
"""Machine of uname(2) to AUDIT_ARCH, the numbers, and the number of seccomp(2)."""

_Verdict = list[Instruction]
_PASS: _Verdict = [(_RETURN, 0, 0, ALLOW)]
_REFUSED: _Verdict = [(_RETURN, 0, 0, _EPERM)]
_ABSENT: _Verdict = [(_RETURN, 0, 0, _ENOSYS)]

_cache: dict[tuple[str, bool], bytes] = {}


def build(machine: str | None = None, release: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter; compiled once per process.

    Args:
        machine: as of uname(2); the running one by default.
        release: of the kernel, such as "6.1.0-18-amd64"; the running one by default. It decides about ptrace.

    Raises:
        OSError: ENOTSUP, no table for this machine.
    """
    running = os.uname()
    machine = machine or running.machine
    tracing = _version(release or running.release) >= syscall_policy.TRACING_SINCE
    if (machine, tracing) not in _cache:
        program = _compile(machine, tracing=tracing)
        _cache[machine, tracing] = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    return _cache[machine, tracing]


def allowed_names(machine: str | None = None, release: str | None = None) -> frozenset[str]:
    """Names of the calls that pass, on this machine and kernel, for at least some arguments.

    Raises:
        OSError: ENOTSUP, no table for this machine.
    """
    running = os.uname()
    _, numbers, _ = _machine(machine or running.machine)
    names = syscall_policy.ALLOWED | CHECKED.keys()
    if _version(release or running.release) >= syscall_policy.TRACING_SINCE:
        names |= frozenset(syscall_policy.TRACING.split())
    return names & numbers.keys()


def install(program: bytes) -> None:
    """Put the filter on the calling thread, for ever, and on all that it starts.

    no_new_privs must be set before (see `caps.set_no_new_privs`): it is asked for here even where CAP_SYS_ADMIN
    would do without, so that a filter never precedes a set-user-id program.

    Raises:
        OSError: EACCES, no_new_privs is not set; EINVAL, not a filter; ENOTSUP, no table for this machine.
    """
    _, _, number = _machine(os.uname().machine)
    # PyDLL, which keeps the interpreter's lock: a child made by a raw clone has no thread that could give it back.
    libc = ctypes.PyDLL(None, use_errno=True)
    pr_get_no_new_privs = 39
    if libc.prctl(pr_get_no_new_privs, *([ctypes.c_ulong(0)] * 4)) != 1:
        raise PermissionError(errno.EACCES, "seccomp filter: no_new_privs is not set")
    count, rest = divmod(len(program), 8)
    if rest or not 0 < count <= _MAX_INSTRUCTIONS:
        raise OSError(errno.EINVAL, "seccomp filter: not a classic BPF program")
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count, padding to a pointer's alignment, the pointer.
    header = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(instructions)))
    set_mode_filter = 1
    if libc.syscall(ctypes.c_long(number), ctypes.c_ulong(set_mode_filter), ctypes.c_ulong(0), header) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp(2): {os.strerror(code)}")


def _machine(machine: str) -> tuple[int, dict[str, int], int]:
    if machine not in _MACHINES:
        raise OSError(errno.ENOTSUP, f"no seccomp filter for machine {machine}")
    return _MACHINES[machine]


def _version(release: str) -> tuple[int, int]:
    digits = [part for part in release.replace("-", ".").split(".") if part.isdigit()]
    return (int(digits[0]), int(digits[1])) if len(digits) > 1 else (0, 0)


def _compile(machine: str, *, tracing: bool) -> list[Instruction]:
    arch, numbers, _ = _machine(machine)
    verdicts: dict[str, _Verdict] = dict.fromkeys(syscall_policy.ALLOWED, _PASS)
    verdicts |= dict.fromkeys(syscall_policy.NOT_IMPLEMENTED, _ABSENT) | CHECKED
    if tracing:
        verdicts |= dict.fromkeys(syscall_policy.TRACING.split(), _PASS)
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, arch),
        _return(KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        *_search(_ranges([(numbers[name], verdicts[name]) for name in numbers.keys() & verdicts.keys()], numbers)),
    ]
    if len(program) > _MAX_INSTRUCTIONS:
        raise OSError(errno.E2BIG, "seccomp filter: program too long")
    return program


def _ranges(verdicts: list[tuple[int, _Verdict]], numbers: dict[str, int]) -> list[tuple[int, _Verdict]]:
    """First number of each range, with what is done from there on to the next one.

    Numbers past the table's end are calls newer than it: ENOSYS makes programs fall back, as on an older kernel.
    From the x32 bit upwards nothing is a call of ours; -1, a call that a tracer cancelled, is up there too.
    """
    points = {0: _REFUSED}
    for number, verdict in sorted(verdicts, key=itemgetter(0)):
        points[number] = verdict
        points[number + 1] = _REFUSED  # unless the next round says otherwise
    points[max(numbers.values()) + 1] = _ABSENT
    points[X32_BIT] = _REFUSED
    steps = list(points.items())
    return [steps[0], *(after for before, after in pairwise(steps) if before[1] != after[1])]


def _search(ranges: list[tuple[int, _Verdict]]) -> list[Instruction]:
    """A balanced tree of comparisons, lower half first."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    border = ranges[middle][0]
    if len(lower) <= _MAX_SHORT_JUMP:
        return [(_IF_AT_LEAST, len(lower), 0, border), *lower, *upper]
    return [(_IF_AT_LEAST, 0, 1, border), (_JUMP, 0, 0, len(lower)), *lower, *upper]


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _one_of(argument: int, values: tuple[int, ...], found: int, otherwise: int) -> list[Instruction]:
    """Compare the low half of an argument; all these arguments are of type int in the kernel, which drops the rest."""
    tests = [(_IF_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGS + 8 * argument), *tests, _return(otherwise), _return(found)]


CHECKED: dict[str, list[Instruction]] = {
    "clone": [
        (_LOAD, 0, 0, _ARGS),
        (_IF_ANY_BIT, 0, 1, NAMESPACE_FLAGS),
        _return(_EPERM),
        _return(ALLOW),
    ],
    "socket": _one_of(0, REFUSED_FAMILIES, found=_EAFNOSUPPORT, otherwise=ALLOW),
    "personality": _one_of(0, PERSONALITIES, found=ALLOW, otherwise=_EPERM),
    "ioctl": _one_of(1, REFUSED_IOCTLS, found=_EPERM, otherwise=ALLOW),
}
"""Calls that pass or not by an argument; clone's flags are its first argument on both machines."""
