"""Compile the policy to classic BPF for the filter of `sandbox.kernel.seccomp`.

A program finds the number of a call by binary search over ranges, in about seven comparisons. It reads a struct
seccomp_data (linux/seccomp.h). For the instructions, see Documentation/networking/filter.rst.
"""

from __future__ import annotations

import errno
import struct
from itertools import pairwise
from operator import itemgetter

from tools.seccomp import policy, table

# Offsets in struct seccomp_data. The low half of a 64-bit argument is first, as both machines are little-endian.
_NR, _ARCH, _ARGS = 0, 4, 16

# Instruction classes and modes, linux/bpf_common.h.
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_RETURN = 0x06  # BPF_RET | BPF_K
_JUMP = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_MAX_SHORT_JUMP = 255

# Actions, linux/seccomp.h.
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM = _ERRNO | errno.EPERM
_ENOSYS = _ERRNO | errno.ENOSYS

X32_BIT = 0x40000000
"""The bit in the number of a call by the x32 ABI, whose numbers mean other calls (arch/x86/entry/syscalls)."""

Instruction = tuple[int, int, int, int]
"""A struct sock_filter: code, jump if true, jump if false, operand."""

MACHINES = {"x86_64": (0xC000003E, table.X86_64), "aarch64": (0xC00000B7, table.AARCH64)}
"""AUDIT_ARCH and the system call numbers, by the machine of uname(2)."""

_Verdict = list[Instruction]
_PASS: _Verdict = [(_RETURN, 0, 0, ALLOW)]
_REFUSED: _Verdict = [(_RETURN, 0, 0, _EPERM)]
_ABSENT: _Verdict = [(_RETURN, 0, 0, _ENOSYS)]


def program(machine: str) -> bytes:
    """Return the filter for a machine of uname(2), as an array of struct sock_filter."""
    arch, numbers = MACHINES[machine]
    verdicts: dict[str, _Verdict] = dict.fromkeys(policy.ALLOWED, _PASS)
    verdicts |= dict.fromkeys(policy.NOT_IMPLEMENTED, _ABSENT) | CHECKED
    instructions = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, arch),
        _return(KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        *_search(_ranges([(numbers[name], verdicts[name]) for name in numbers.keys() & verdicts.keys()], numbers)),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def names(machine: str) -> frozenset[str]:
    """Return the names of the calls that are allowed for at least some arguments."""
    return (policy.ALLOWED | CHECKED.keys()) & MACHINES[machine][1].keys()


def _ranges(verdicts: list[tuple[int, _Verdict]], numbers: dict[str, int]) -> list[tuple[int, _Verdict]]:
    """Return the first number of each range of numbers, with the verdict for the range.

    Numbers beyond the table are newer calls: ENOSYS makes programs fall back, as on an older kernel. Numbers from the
    x32 bit on are refused; -1, a call that a tracer cancelled, is among them.
    """
    points = {0: _REFUSED}
    for number, verdict in sorted(verdicts, key=itemgetter(0)):
        points[number] = verdict
        points[number + 1] = _REFUSED  # unless the next iteration overwrites it
    points[max(numbers.values()) + 1] = _ABSENT
    points[X32_BIT] = _REFUSED
    steps = list(points.items())
    return [steps[0], *(after for before, after in pairwise(steps) if before[1] != after[1])]


def _search(ranges: list[tuple[int, _Verdict]]) -> list[Instruction]:
    """Return a balanced tree of comparisons, lower half first."""
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
    """Compare the low half of an argument: these arguments are of type int, and the kernel ignores the upper half."""
    tests = [(_IF_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGS + 8 * argument), *tests, _return(otherwise), _return(found)]


CHECKED: dict[str, list[Instruction]] = {
    "clone": [
        (_LOAD, 0, 0, _ARGS),
        (_IF_ANY_BIT, 0, 1, policy.NAMESPACE_FLAGS),
        _return(_EPERM),
        _return(ALLOW),
    ],
    "socket": _one_of(0, policy.FAMILIES, found=ALLOW, otherwise=_EPERM),
    "socketpair": _one_of(0, policy.PAIR_FAMILIES, found=ALLOW, otherwise=_EPERM),
    "personality": _one_of(0, policy.PERSONALITIES, found=ALLOW, otherwise=_EPERM),
    "ioctl": _one_of(1, policy.REFUSED_IOCTLS, found=_EPERM, otherwise=ALLOW),
}
"""Calls whose verdict depends on an argument. The flags of clone are its first argument on both machines."""
