"""Compiles the policy to classic BPF for the filter of `sandbox.kernel.seccomp`.

Numbers are found by binary search over ranges, so that a call costs about seven comparisons where the program runs.

Layout of the data that a program reads: struct seccomp_data, linux/seccomp.h. Instructions:
Documentation/networking/filter.rst.
"""

from __future__ import annotations

import errno
import struct
from itertools import pairwise
from operator import itemgetter

from tools.seccomp import policy, table

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

# Actions, linux/seccomp.h.
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM = _ERRNO | errno.EPERM
_ENOSYS = _ERRNO | errno.ENOSYS

X32_BIT = 0x40000000
"""Set in the number of a call through the x32 ABI, whose numbers mean other calls (arch/x86/entry/syscalls)."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: struct sock_filter."""

MACHINES = {"x86_64": (0xC000003E, table.X86_64), "aarch64": (0xC00000B7, table.AARCH64)}
"""Machine of uname(2) to AUDIT_ARCH and the numbers."""

_Verdict = list[Instruction]
_PASS: _Verdict = [(_RETURN, 0, 0, ALLOW)]
_REFUSED: _Verdict = [(_RETURN, 0, 0, _EPERM)]
_ABSENT: _Verdict = [(_RETURN, 0, 0, _ENOSYS)]


def program(machine: str) -> bytes:
    """The filter for a machine of uname(2) as an array of struct sock_filter."""
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
    """Names of the calls that pass for at least some arguments."""
    return (policy.ALLOWED | CHECKED.keys()) & MACHINES[machine][1].keys()


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
        (_IF_ANY_BIT, 0, 1, policy.NAMESPACE_FLAGS),
        _return(_EPERM),
        _return(ALLOW),
    ],
    "socket": _one_of(0, policy.FAMILIES, found=ALLOW, otherwise=_EPERM),
    "socketpair": _one_of(0, policy.PAIR_FAMILIES, found=ALLOW, otherwise=_EPERM),
    "personality": _one_of(0, policy.PERSONALITIES, found=ALLOW, otherwise=_EPERM),
    "ioctl": _one_of(1, policy.REFUSED_IOCTLS, found=_EPERM, otherwise=ALLOW),
}
"""Calls that pass or not by an argument; clone's flags are its first argument on both machines."""
