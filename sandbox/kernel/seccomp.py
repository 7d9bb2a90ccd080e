"""The seccomp filter of a sandbox, and how it is put on a process.

`python -m tools.seccomp` compiles the filters to classic BPF, from the list of calls in tools/seccomp/policy.py. They
look at the architecture, the call's number and, for five calls, the low half of one argument. Since most verdicts
depend on the number alone, the kernel remembers them per call and does not run the program at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_PR_SET_SECCOMP, _PR_GET_NO_NEW_PRIVS = 22, 39
_SECCOMP_MODE_FILTER = 2


def build(machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter.

    Args:
        machine: as of uname(2); the running one by default.

    Raises:
        OSError: ENOTSUP, no filter for this machine.
    """
    machine = machine or os.uname().machine
    try:
        return bytes.fromhex(Path(__file__).with_name(f"seccomp-{machine}.hex").read_text(encoding="ascii"))
    except FileNotFoundError:
        raise OSError(errno.ENOTSUP, f"no seccomp filter for machine {machine}") from None


def install(program: bytes) -> None:
    """Put the filter on the calling thread, for ever, and on all that it starts.

    no_new_privs must be set before (see `caps.set_no_new_privs`): it is asked for here even where CAP_SYS_ADMIN
    would do without, so that a filter never precedes a set-user-id program.

    Raises:
        OSError: EACCES, no_new_privs is not set; EINVAL, not a filter.
    """
    # PyDLL, which keeps the interpreter's lock: a child made by a raw clone has no thread that could give it back.
    libc = ctypes.PyDLL(None, use_errno=True)
    unused = ctypes.c_ulong(0)
    if libc.prctl(_PR_GET_NO_NEW_PRIVS, unused, unused, unused, unused) != 1:
        raise PermissionError(errno.EACCES, "seccomp filter: no_new_privs is not set")
    count, rest = divmod(len(program), 8)
    if rest or not 0 < count <= _MAX_INSTRUCTIONS:
        raise OSError(errno.EINVAL, "seccomp filter: not a classic BPF program")
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a 16-bit count, padding to a pointer's alignment, the pointer.
    header = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(instructions)))
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), header, unused, unused) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_SECCOMP): {os.strerror(code)}")
