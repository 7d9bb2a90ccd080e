"""Children that end up behind a wall: one in fresh namespaces, one in a chroot, and commands that join either.

The child imports nothing and always ends in exec or os._exit. Parent and child talk over two pipes: by `control` the
parent lets the child go on, one letter at a time; by `report` the child says how far it came, or what failed. When the
parent dies, the child reads the end of `control` and exits, and its namespaces die with it.

Sources: namespaces(7), user_namespaces(7), pid_namespaces(7), clone(2), setns(2), credentials(7).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sandbox.kernel import caps, ifconfig, rootfs, seccomp, syscalls

ALL_NAMESPACES = sum(syscalls.NAMESPACES.values())
_CLONE_FLAGS = (ALL_NAMESPACES & ~syscalls.CLONE_NEWCGROUP) | syscalls.SIGCHLD
_CONTROL_FD, _REPORT_FD = 3, 4
_GO = b"g"
_PID, _READY, _FAILED = b"P", b"R", b"E"
_MAX_REPORT = 4096


class ChildError(OSError):
    """The child failed at a named step; errno and text are the kernel's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the child does. Everything is decided before the fork.

    Attributes:
        argv: the command, argv[0] an absolute path inside.
        env: its whole environment.
        uid: user and group inside.
        root: path of the root filesystem's directory, outside.
        log: path that stdout and stderr are appended to.
        cgroup_files: files to write "0" to, to join the control group.
        hostname: inside; None keeps the host's.
        address: (dotted quad, netmask) of eth0; None where there is no link to configure.
        tmpfs: directories that get a tmpfs, each with its mode.
        tmpfs_bytes: size of each.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    uid: int
    root: str
    log: str
    cgroup_files: tuple[str, ...]
    hostname: str | None = None
    address: tuple[str, str] | None = None
    tmpfs: tuple[tuple[str, int], ...] = ()
    tmpfs_bytes: int = 0


MAPPED_COUNT = 65536


class Child:
    """A child that was made and waits. Close it to let it die, `release` it to let it exec."""

    def __init__(self, control: int, report: int) -> None:
        self.pid = 0
        self._control = control
        self._report = report

    def _go(self) -> None:
        with suppress(BrokenPipeError):  # it died of something that its report tells
            os.write(self._control, _GO)

    def _expect(self, kind: bytes) -> bytes:
        message = b""
        # A report is one write(2) below PIPE_BUF, but two of them may be read at once: each is a line.
        while not message.endswith(b"\n"):
            got = os.read(self._report, 1)
            if not got:
                break
            message += got
        if message[:1] == kind:
            return message[1:].strip()
        if message[:1] == _FAILED:
            number, step, text = message[1:].decode("utf-8", "replace").strip().split("\t", 2)
            raise ChildError(int(number), f"{step}: {text}")
        raise ChildError(0, "the child ended without a word")

    def release(self) -> None:
        """Let it exec, and return once it has.

        Raises:
            ChildError: what failed in it.
        """
        self._go()
        rest = os.read(self._report, _MAX_REPORT)
        self.close()
        if rest[:1] == _FAILED:
            number, step, text = rest[1:].decode("utf-8", "replace").strip().split("\t", 2)
            raise ChildError(int(number), f"{step}: {text}")

    def close(self) -> None:
        """Close our ends; a child that still waits exits."""
        for name in ("_control", "_report"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                setattr(self, name, -1)
                os.close(descriptor)


def spawn_namespaced(plan: Plan, mapped_base: int, plug: Callable[[int], None]) -> Child:
    """Make a child in fresh namespaces, ready to exec.

    A raw clone(2) makes it, without a fork first that would copy the page tables twice (2 to 4 ms of a start, by the
    size of the caller). That is safe only in a process of one thread; where there are more, a process is forked in
    between, and CLONE_PARENT makes the child ours.

    Args:
        plan: what to do.
        mapped_base: see `map_ids`.
        plug: called with the child's pid once its namespaces exist, to give it the link `eth0`.

    Raises:
        ChildError: a step in the child failed.
        OSError: fork failed.
    """
    program = seccomp.build()
    alone = len(os.listdir("/proc/self/task")) == 1

    def body() -> None:
        if not alone:
            os.setgroups([])
            made = syscalls.clone(_CLONE_FLAGS | syscalls.CLONE_PARENT)
            if made:
                _say(_PID + str(made).encode())
                os._exit(0)
        _join(plan.cgroup_files)
        # After joining: the root of the new cgroup namespace is the group itself.
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        _wait_for_go()
        _be_root_inside(plan)
        _wait_for_go()
        ifconfig.up("lo")
        if plan.address is not None:
            ifconfig.up("eth0", *plan.address)
        _say(_READY)
        _wait_for_go()
        confine(plan.uid, program)

    child, first = _spawn(plan, body, _clone if alone else os.fork)
    try:
        if alone:
            child.pid = first
        else:
            try:
                child.pid = int(child._expect(_PID))
            finally:
                os.waitpid(first, 0)
        map_ids(child.pid, mapped_base)
        child._go()
        plug(child.pid)  # while the child mounts its root, on another CPU if there is one
        child._go()
        child._expect(_READY)
    except BaseException:
        child.close()
        if child.pid:
            kill_and_reap(child.pid)
        raise
    return child


def _clone() -> int:
    """Clone into new namespaces, without supplementary groups: inside they could not be dropped any more."""
    groups = os.getgroups()
    os.setgroups([])
    try:
        made = syscalls.clone(_CLONE_FLAGS)
    except BaseException:
        os.setgroups(groups)
        raise
    if made:
        os.setgroups(groups)
    return made


def spawn_chrooted(plan: Plan) -> Child:
    """Make a child in a chroot and a control group, as another user, and behind no other wall.

    Raises:
        ChildError, OSError
    """

    def body() -> None:
        _join(plan.cgroup_files)
        _say(_READY)
        _wait_for_go()
        change_root(plan.root, plan.uid)

    child, pid = _spawn(plan, body, os.fork)
    child.pid = pid
    try:
        child._expect(_READY)
    except BaseException:
        child.close()
        kill_and_reap(child.pid)
        raise
    return child


def _spawn(plan: Plan, body: Callable[[], None], make: Callable[[], int]) -> tuple[Child, int]:
    control_read, control_write = os.pipe()
    report_read, report_write = os.pipe()
    log = os.open(plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        pid = make()
        if pid == 0:
            _child(plan, body, (control_read, report_write), log)
    finally:
        for descriptor in (control_read, report_write, log):
            os.close(descriptor)
    return Child(control_write, report_read), pid


def _child(plan: Plan, body: Callable[[], None], keep: tuple[int, int], log: int) -> NoReturn:
    step = "descriptors"
    try:
        _arrange(keep, log)
        os.setsid()
        os.umask(0o022)
        step = "namespaces"
        body()
        step = plan.argv[0]
        os.execve(plan.argv[0], plan.argv, dict(plan.env))  # noqa: S606 - no shell is the point
    except OSError as error:
        _say(_FAILED + f"{error.errno or 0}\t{step}\t{error.strerror} {error.filename or ''}".encode())
    except BaseException as error:  # a child must never return into its parent's code
        _say(_FAILED + f"0\t{step}\t{type(error).__name__} {error}".encode())
    finally:
        os._exit(127)


def _arrange(keep: tuple[int, int], log: int) -> None:
    """Put what the child needs at fixed numbers and close everything else, before anything can go wrong."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    # First out of the way of the fixed numbers, then onto them.
    spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in (*keep, log)]
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(spare[2], 1)
    os.dup2(spare[2], 2)
    for descriptor, fixed in zip(spare[:2], (_CONTROL_FD, _REPORT_FD), strict=True):
        os.dup2(descriptor, fixed, inheritable=False)
    syscalls.close_from(_REPORT_FD + 1)


def _say(message: bytes) -> None:
    os.write(_REPORT_FD, message.replace(b"\n", b" ")[: _MAX_REPORT - 1] + b"\n")


def _wait_for_go() -> None:
    if os.read(_CONTROL_FD, 1) != _GO:
        os._exit(0)  # the parent is gone or has changed its mind


def _join(files: Sequence[str]) -> None:
    for path in files:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def _be_root_inside(plan: Plan) -> None:
    # Opened by the host's root, who may pass every directory on the way, and in the new mount namespace: a mount of
    # the old one cannot be bound here.
    root = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if plan.hostname is not None:
        socket.sethostname(plan.hostname)
    syscalls.new_session_keyring()
    rootfs.enter(root, plan.tmpfs, plan.tmpfs_bytes)
    os.close(root)


def confine(uid: int, program: bytes) -> None:
    """The last walls, in the order in which each still can be put up: capabilities, user, privileges, system calls."""
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


def map_ids(pid: int, base: int) -> None:
    """Map 65,536 ids of a child's user namespace to ids from `base`, and deny setgroups(2) in it for good.

    Raises:
        OSError
    """
    line = f"0 {base} {MAPPED_COUNT}\n"
    for name, text in (("setgroups", "deny"), ("uid_map", line), ("gid_map", line)):
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")


def joiner(pid: int, cgroup_files: Sequence[str], uid: int) -> Callable[[], None]:
    """What a child of subprocess runs before exec, to join the namespaces of `pid` behind the same walls.

    A process enters a pid namespace by its children only (pid_namespaces(7)), so this forks once more, and the
    process that subprocess knows waits for the inner one and passes its end on.
    """
    program = seccomp.build()

    def enter() -> None:
        pidfd = os.pidfd_open(pid)
        os.setsid()
        _join(cgroup_files)
        os.setgroups([])
        syscalls.new_session_keyring()
        syscalls.setns(pidfd, ALL_NAMESPACES)
        os.close(pidfd)
        inner = os.fork()
        if inner:
            _pass_on(inner)
        confine(uid, program)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)

    return enter


def chroot_joiner(root: str, cgroup_files: Sequence[str], uid: int) -> Callable[[], None]:
    """What a child of subprocess runs before exec, to join a chroot and a control group."""

    def enter() -> None:
        os.setsid()
        _join(cgroup_files)
        change_root(root, uid)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)

    return enter


def _pass_on(inner: int) -> NoReturn:
    # Our copies of the pipes go first, or their readers would wait for us beside the inner process.
    syscalls.close_from(0)
    _, status = os.waitpid(inner, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))


def kill_and_reap(pid: int) -> None:
    """SIGKILL to a child of ours, and wait for it."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
