"""The walls that a process puts around itself, one function each. Standard library only; each raises OSError.

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
    """The state in which a program expects its signals: nothing blocked, nothing ignored, no handler of ours."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def join_groups(files: Sequence[str]) -> None:
    """Move the calling process, of one thread, into control groups by their files."""
    for path in files:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def unshare_time() -> None:
    """Let the process's exec start a clock of its own: inside, the host's time since boot is not known.

    From Linux 6.3 the process itself moves at its exec; before, its children do, and that is the workload, the child
    of the init. A kernel without time namespaces (before 5.6, or built without) is passed over.

    Raises:
        OSError
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWTIME)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return
    # Clocks are shifted by whole seconds, and downwards, so that neither becomes negative.
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
"""Bytes. Where /proc/sys/kernel/core_pattern names a program, the kernel starts it as the host's root for whatever
crashes, and feeds it the image of it; RLIMIT_CORE does not stop that, save for this value (fs/coredump.c)."""


def confine(uid: int, program: bytes) -> None:
    """The last walls, in the order in which each still can be put up: capabilities, user, privileges, system calls."""
    resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    caps.drop_bounding()
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    caps.clear()
    caps.set_no_new_privs()
    seccomp.install(program)


def change_root(root: str, uid: int) -> None:
    """Into a chroot, and to another user without groups."""
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class WorkdirError(OSError):
    """The working directory is not there, may not be entered, or is not inside the root."""


def change_directory(path: str) -> None:
    """Go to a directory inside, as the user that one is by now, and make sure that it is inside.

    Raises:
        WorkdirError
    """
    try:
        os.chdir(path)
        check_directory()
    except OSError as error:
        raise WorkdirError(error.errno, error.strerror) from None


def check_program(name: str, path: str) -> None:
    """Look a program up as execvp(3) does, as the user that one is by now.

    Raises:
        OSError: ENOENT, there is none; EACCES, it cannot be executed.
    """
    places = [name] if "/" in name else [f"{directory or '.'}/{name}" for directory in path.split(":")]
    found = [place for place in places if os.path.exists(place)]
    if not any(os.access(place, os.X_OK) and not os.path.isdir(place) for place in found):
        number = errno.EACCES if found else errno.ENOENT
        raise OSError(number, os.strerror(number))


def check_directory() -> None:
    """Make sure that the working directory is inside the root: elsewhere it is a way out (CVE-2024-21626 was one).

    Raises:
        OSError: ENOENT, the kernel shows its path as unreachable (getcwd(2)).
    """
    if not os.getcwd().startswith("/"):
        raise OSError(errno.EXDEV, "it is outside the root")
