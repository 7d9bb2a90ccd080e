"""Drop capabilities for good, and read those of a process. See capabilities(7), prctl(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from sandbox.kernel import procfs

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_GET_SECUREBITS = 27
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h: two 32-bit words per set
_MAX_CAPABILITY = 63

SECUREBITS = 0xEF
"""NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock, and the lock of KEEP_CAPS off: user id 0 is
no longer special, neither at exec nor at a change of user (capabilities(7), the securebits flags)."""

_NAMES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
"""By number, linux/capability.h."""

NO_SETUID_FIXUP = 1 << 2
"""The securebit that makes a change of user leave the capabilities unchanged."""

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
FIELDS = (*SETS, "NoNewPrivs", "Seccomp", "Seccomp_filters")

# PyDLL keeps the interpreter's lock: in a child made by a raw clone no other thread exists that could release it.
_libc = ctypes.PyDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _libc.prctl(option, *padded)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
    return result


def securebits() -> int:
    """Return the securebits flags of the calling thread."""
    return _prctl(_PR_GET_SECUREBITS)


def set_securebits(bits: int) -> None:
    """Set the securebits flags of the calling thread.

    Raises:
        OSError: EPERM, CAP_SETPCAP is not held, or a flag is locked.
    """
    _prctl(_PR_SET_SECUREBITS, bits)


def drop_bounding() -> None:
    """Empty the bounding set and lock the securebits: the thread keeps its capabilities, but no exec gains any.

    The bits include NO_SETUID_FIXUP, so a change of user after this keeps the permitted set until `clear`.

    Raises:
        OSError: EPERM, CAP_SETPCAP is not held.
    """
    for capability in range(_MAX_CAPABILITY + 1):
        try:
            if _prctl(_PR_CAPBSET_READ, capability):
                _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # one past the last that this kernel knows
    _prctl(_PR_SET_SECUREBITS, SECUREBITS)


def clear() -> None:
    """Empty the ambient, effective, permitted and inheritable sets. Needs no privilege.

    Raises:
        OSError: the kernel refuses. It does not for sets that only shrink.
    """
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    if _libc.capset(header, ctypes.create_string_buffer(bytes(24), 24)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset(2): {os.strerror(code)}")


def set_no_new_privs() -> None:
    """Set no_new_privs: no later exec honours set-user-ID bits or file capabilities. It cannot be unset."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def status(pid: int | str = "self") -> dict[str, int]:
    """Read those of FIELDS that /proc/<pid>/status has, by their names there.

    Raises:
        OSError: ENOENT or ESRCH, no such process.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
        return parse(stream.read())


def parse(text: str) -> dict[str, int]:
    """Parse those of FIELDS that the text of a /proc/<pid>/status file has; sets are hexadecimal, the rest decimal."""
    said = procfs.fields(text)
    return {name: int(said[name], 16 if name in SETS else 10) for name in FIELDS if name in said}


def names(mask: int) -> list[str]:
    """Return the names of the capabilities in a set, in numerical order; the number of one that is not in the table."""
    bits = [bit for bit in range(_MAX_CAPABILITY + 1) if mask >> bit & 1]
    return [f"CAP_{_NAMES[bit]}" if bit < len(_NAMES) else str(bit) for bit in bits]
