"""System calls that Python 3.11's standard library lacks, through ctypes. Each raises OSError.

Sources: the man page of the call named in each docstring.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

# PyDLL, not CDLL: it keeps the interpreter's lock during the call. A child made by a raw clone has one thread, and
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
    "time": CLONE_NEWTIME,
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
_PR_GET_PDEATHSIG = 2
_PR_SET_NAME = 15
KEYCTL_JOIN_SESSION_KEYRING = 1
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
CLOSE_RANGE_CLOEXEC = 4
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x00100000
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

# Numbers from the kernel's unistd headers; from 424 on they are the same on every machine.
_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "keyctl": 250},
    "aarch64": {"clone": 220, "pivot_root": 41, "keyctl": 219},
}
_numbers = _NUMBERS.get(platform.machine(), _NUMBERS["x86_64"])
_OPEN_TREE, _MOVE_MOUNT, _CLOSE_RANGE, _OPENAT2, _MOUNT_SETATTR = 428, 429, 436, 437, 442


def _check(result: int, what: str = "") -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what or None)
    return result


def _path(text: str | os.PathLike[str]) -> bytes:
    return os.fsencode(text)


def unshare(flags: int) -> None:
    """Move the caller into new namespaces, see unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, flags: int = 0) -> None:
    """Enter namespaces through a namespace's descriptor or a pidfd, see setns(2)."""
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)), "setns")


def clone(flags: int) -> int:
    """Fork with clone(2)'s flags. Returns 0 in the child, its pid in the parent.

    The caller must be single-threaded: the child has only this thread, and locks held by others stay locked.
    """
    # The order of the last arguments differs between architectures; all of them are 0 here.
    zero = ctypes.c_ulong(0)
    return _check(_libc.syscall(_numbers["clone"], ctypes.c_ulong(flags), zero, zero, zero, zero), "clone")


def mount(
    source: str, target: str | os.PathLike[str], kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """Mount a file system, see mount(2). `kind` is its type."""
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
    """Unmount a file system, see umount2(2)."""
    _check(_libc.umount2(_path(target), ctypes.c_int(flags)), os.fspath(target))


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root mount, see pivot_root(2). With "." for both, the old root is stacked on the new one."""
    _check(_libc.syscall(_numbers["pivot_root"], _path(new_root), _path(put_old)), "pivot_root")


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    """Call prctl(2), and return its result."""
    return _check(
        _libc.prctl(
            ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(third), ctypes.c_ulong(0), ctypes.c_ulong(0)
        ),
        f"prctl {option}",
    )


def parent_death_signal() -> int:
    """Return the signal that the caller gets when its parent dies, 0 for none; see PR_GET_PDEATHSIG, prctl(2)."""
    found = ctypes.c_int()
    none = ctypes.c_ulong(0)
    _check(_libc.prctl(ctypes.c_int(_PR_GET_PDEATHSIG), ctypes.byref(found), none, none, none), "prctl get pdeathsig")
    return found.value


def set_name(name: str) -> None:
    """Set the calling thread's name, as shown by ps(1) and /proc/pid/comm; at most 15 bytes, see PR_SET_NAME."""
    buffer = ctypes.create_string_buffer(name.encode())
    _check(_libc.prctl(ctypes.c_int(_PR_SET_NAME), buffer, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def setfsuid(uid: int) -> None:
    """Set the user identity for file system checks, see setfsuid(2)."""
    _libc.setfsuid(ctypes.c_uint(uid))
    if _libc.setfsuid(ctypes.c_uint(0xFFFFFFFF)) != uid:  # -1 changes nothing and returns the current id
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "setfsuid")


def new_session_keyring() -> None:
    """Join a new session keyring, so that nothing inside can read the keys of the caller's; see keyctl(2)."""
    _check(_libc.syscall(_numbers["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")


def close_from(first: int) -> None:
    """Close every descriptor from `first` up, see close_range(2)."""
    _close_range(first, 0)


def close_from_at_exec(first: int) -> None:
    """Set close-on-exec on every descriptor from `first` up, see close_range(2)."""
    _close_range(first, CLOSE_RANGE_CLOEXEC)


def _close_range(first: int, flags: int) -> None:
    _check(
        _libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), ctypes.c_uint(flags)),
        "close_range",
    )


def openat2(directory: int, path: str | os.PathLike[str], flags: int, resolve: int) -> int:
    """Open a path, resolved under the given RESOLVE_ flags, see openat2(2)."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _check(
        _libc.syscall(_OPENAT2, ctypes.c_int(directory), _path(path), how, ctypes.c_size_t(len(how))), os.fspath(path)
    )


def open_tree(descriptor: int) -> int:
    """Copy the mount at an O_PATH descriptor and all mounts below it; return a descriptor of the unattached copy.

    See open_tree(2).
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH
    return _check(_libc.syscall(_OPEN_TREE, ctypes.c_int(descriptor), b"", ctypes.c_uint(flags)), "open_tree")


def move_mount(tree: int, target: int) -> None:
    """Attach a copy made by `open_tree` at an O_PATH descriptor, see move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(
        _libc.syscall(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(flags)),
        "move_mount",
    )


def mount_setattr(tree: int, attributes: int, *, propagation: int = 0, user_namespace: int = 0) -> None:
    """Set MOUNT_ATTR_ flags of a mount and all mounts below it, see mount_setattr(2)."""
    how = struct.pack("=QQQQ", attributes, 0, propagation, user_namespace)
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    _check(
        _libc.syscall(_MOUNT_SETATTR, ctypes.c_int(tree), b"", ctypes.c_uint(flags), how, ctypes.c_size_t(len(how))),
        "mount_setattr",
    )
