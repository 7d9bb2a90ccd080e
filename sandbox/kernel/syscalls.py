"""System calls that the standard library of Python 3.11 lacks, through ctypes. Each raises OSError.

Sources: the man page of the call named in each docstring.
"""

from __future__ import annotations

import ctypes
import os
import platform

# PyDLL, not CDLL: it keeps the interpreter's lock over the call. A child made by a raw clone has one thread, and
# would wait for ever for a lock that another thread of the parent took during the call.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_PARENT = 0x00008000
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

NAMESPACES = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
}
"""Names as in /proc/pid/ns, see namespaces(7)."""

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
MNT_DETACH = 2

SIGCHLD = 17
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
KEYCTL_JOIN_SESSION_KEYRING = 1
AT_FDCWD = -100

# clone(2), pivot_root(2), keyctl(2), close_range(2): numbers from the kernel's unistd headers.
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "keyctl": 250, "close_range": 436},
    "aarch64": {"clone": 220, "pivot_root": 41, "keyctl": 219, "close_range": 436},
}
_numbers = _NUMBERS.get(platform.machine(), _NUMBERS["x86_64"])


def _check(result: int, what: str = "") -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what or None)
    return result


def _path(text: str | os.PathLike[str]) -> bytes:
    return os.fsencode(text)


def unshare(flags: int) -> None:
    """Leave namespaces, see unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, flags: int = 0) -> None:
    """Enter namespaces through a namespace's descriptor or a pidfd, see setns(2)."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)), "setns")


def clone(flags: int) -> int:
    """A fork with clone(2)'s flags: 0 in the child, its pid in the parent.

    The caller must have one thread, for the child gets this thread alone and no lock that another one holds.
    """
    # The order of the last arguments differs between architectures; all of them are 0 here.
    zero = ctypes.c_ulong(0)
    return _check(_libc.syscall(_numbers["clone"], ctypes.c_ulong(flags), zero, zero, zero, zero), "clone")


def mount(
    source: str, target: str | os.PathLike[str], kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """See mount(2). `kind` is the file system type."""
    _check(
        _libc.mount(
            _path(source),
            _path(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if data is None else data.encode(),
        ),
        os.fspath(target),
    )


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """See umount2(2)."""
    _check(_libc.umount2(_path(target), ctypes.c_int(flags)), os.fspath(target))


def pivot_root(new_root: str, put_old: str) -> None:
    """See pivot_root(2); with "." for both, the old root is mounted over the new one and can be detached."""
    _check(_libc.syscall(_numbers["pivot_root"], _path(new_root), _path(put_old)), "pivot_root")


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """See prctl(2)."""
    return _check(
        _libc.prctl(
            ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)
        ),
        f"prctl {option}",
    )


def new_session_keyring() -> None:
    """Leave the session keyring of the caller, so that nothing inside can read its keys; see keyctl(2)."""
    _check(_libc.syscall(_numbers["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")


def close_from(first: int) -> None:
    """Close every descriptor from `first` up, see close_range(2)."""
    _check(
        _libc.syscall(_numbers["close_range"], ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(0)),
        "close_range",
    )
