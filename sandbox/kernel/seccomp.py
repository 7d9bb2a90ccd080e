"""The seccomp filter of a sandbox: what it looks at beside the number of a call, and how it is put on a process.

The list of calls is `syscall_policy`, `seccomp_compiler` makes classic BPF of it, and `seccomp_programs` holds what
came of it, so that a start of a sandbox neither reads the list nor compiles, which together takes 0.8 ms.

The filter looks at the architecture, the call's number and, for five calls, the low half of one argument. Since most
verdicts depend on the number alone, the kernel (from 5.11) remembers them per call and does not run the program at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from sandbox.kernel.seccomp_programs import PROGRAMS

_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (clone(2)). CLONE_NEWTIME shares a bit with the
exit signal and can only be given to clone3 and unshare."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, each with UNAME26 or without, and "only ask" (personality(2)). Not READ_IMPLIES_EXEC, nor
what switches address randomisation off."""
REFUSED_IOCTLS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX type into the terminal that the sandbox was started from (ioctl_tty(2))."""
FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK (getifaddrs(3) needs it): what servers use, and all that may be made.
Docker refuses AF_ALG (the kernel's cryptography, a history of holes) and AF_VSOCK (reaches the hypervisor, and is in no
network namespace), and lets some thirty others through. Any user may have the kernel load their modules by asking for
a socket, or for a pair of them, and without capabilities nothing here has a use for one."""
PAIR_FAMILIES = (1,)
"""socketpair(2) is for AF_UNIX, and makes sockets of the other families as `socket` does before it says so."""

TRACING_SINCE = (4, 8)
"""The kernel from which on a tracer cannot change a call after the filter has seen it: see `syscall_policy.TRACING`."""

_NUMBERS = {"x86_64": 317, "aarch64": 277}
"""Of seccomp(2), by machine of uname(2)."""


def build(machine: str | None = None, release: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter.

    Args:
        machine: as of uname(2); the running one by default.
        release: of the kernel, such as "6.1.0-18-amd64"; the running one by default. It decides about ptrace.

    Raises:
        OSError: ENOTSUP, no table for this machine.
    """
    running = os.uname()
    machine = machine or running.machine
    tracing = may_trace(release or running.release)
    if tracing and machine in PROGRAMS:
        return PROGRAMS[machine]
    from sandbox.kernel import seccomp_compiler

    return seccomp_compiler.program(machine, tracing=tracing)


def allowed_names(machine: str | None = None, release: str | None = None) -> frozenset[str]:
    """Names of the calls that pass, on this machine and kernel, for at least some arguments.

    Raises:
        OSError: ENOTSUP, no table for this machine.
    """
    from sandbox.kernel import seccomp_compiler

    running = os.uname()
    return seccomp_compiler.names(machine or running.machine, tracing=may_trace(release or running.release))


def may_trace(release: str) -> bool:
    """Whether a kernel's filters hold against a tracer; a release that cannot be read is taken for an old one."""
    digits = [part for part in release.replace("-", ".").split(".") if part.isdigit()]
    return len(digits) > 1 and (int(digits[0]), int(digits[1])) >= TRACING_SINCE


def install(program: bytes) -> None:
    """Put the filter on the calling thread, for ever, and on all that it starts.

    no_new_privs must be set before (see `caps.set_no_new_privs`): it is asked for here even where CAP_SYS_ADMIN
    would do without, so that a filter never precedes a set-user-id program.

    Raises:
        OSError: EACCES, no_new_privs is not set; EINVAL, not a filter; ENOTSUP, no table for this machine.
    """
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOTSUP, f"no seccomp filter for machine {os.uname().machine}")
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
