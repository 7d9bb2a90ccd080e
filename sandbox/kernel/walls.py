"""The steps by which a process confines itself, one function each. Standard library only; each raises OSError.

Sources: capabilities(7), credentials(7), seccomp(2), chroot(2), time_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Sequence

from sandbox.kernel import caps, seccomp, syscalls


def default_signals() -> None:
    """Reset signals to what a new program expects: none blocked, none ignored, no handlers."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def join_groups(files: Sequence[str]) -> None:
    """Move the calling, single-threaded process into control groups, given their `join_files`."""
    for path in files:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def unshare_time() -> None:
    """Start a new time namespace, so that the host's uptime is not visible inside.

    Since Linux 6.3 the process itself enters it at its exec; before, its children do, which includes the workload, a
    child of the init. Does nothing on a kernel built without time namespaces.

    Raises:
        OSError
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWTIME)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return
    # Shifted by whole seconds, rounded down, so that neither clock becomes negative.
    lines = [
        f"{name} -{int(time.clock_gettime(clock))} 0\n"
        for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))
    ]
    descriptor = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, "".join(lines).encode())
    finally:
        os.close(descriptor)


NO_CORE = 1
"""Bytes. If /proc/sys/kernel/core_pattern names a program, the kernel runs it as the host's root for every crash, with
the core image as its input. Of all values of RLIMIT_CORE only this one prevents that (fs/coredump.c)."""


def confine(uid: int, program: bytes) -> None:
    """Drop capabilities, change the user, set no_new_privs, install the seccomp filter; the order matters."""
    resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    caps.drop_bounding()
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    caps.clear()
    caps.set_no_new_privs()
    seccomp.install(program)


def change_root(root: str, uid: int) -> None:
    """Change the root directory, and change to another user without supplementary groups."""
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class WorkdirError(OSError):
    """The working directory does not exist, may not be entered, or is outside the root."""


def change_directory(path: str) -> None:
    """Change to a directory inside, as the current user, and make sure that it is inside the root.

    Raises:
        WorkdirError
    """
    try:
        os.chdir(path)
        check_directory()
    except OSError as error:
        raise WorkdirError(error.errno, error.strerror) from None


def check_program(name: str, path: str) -> None:
    """Look up a program as execvp(3) does, with the current user's permissions.

    Raises:
        OSError: ENOENT, it does not exist; EACCES, it cannot be executed.
    """
    places = [name] if "/" in name else [f"{directory or '.'}/{name}" for directory in path.split(":")]
    found = [place for place in places if os.path.exists(place)]
    if not any(os.access(place, os.X_OK) and not os.path.isdir(place) for place in found):
        number = errno.EACCES if found else errno.ENOENT
        raise OSError(number, os.strerror(number))


def check_directory() -> None:
    """Make sure that the working directory is inside the root: outside, it would be a way to escape (CVE-2024-21626).

    Raises:
        OSError: ENOENT or EXDEV, the directory is not below the root; the kernel calls it unreachable (getcwd(2)).
    """
    if not os.getcwd().startswith("/"):
        raise OSError(errno.EXDEV, "it is outside the root")
