"""Run a command in a sandbox: join its namespaces or chroot and its control group, and confine the process.

Only the children of a process that joins a pid namespace are in it (pid_namespaces(7)). So the joining process clones
the command with CLONE_PARENT, which makes it a child of the caller, and exits; the caller then waits for the command
itself. PR_SET_PDEATHSIG kills the command when the thread that started it ends. The command executes only after it has
reported that this is set and its parent has answered, so that the parent's death cannot be missed.

The child imports nothing and always ends in exec or os._exit. It talks to its parent over a socket that preserves
message boundaries (unix(7), SOCK_SEQPACKET) and is closed by the exec.

Sources: setns(2), clone(2), pty(7), pts(4), ioctl_tty(2), prctl(2), unix(7).
"""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from sandbox.kernel import seccomp, syscalls, walls
from sandbox.kernel.enter import ALL_NAMESPACES, WORKDIR_STEP, ChildError, kill_and_reap

_GO = b"g"
_PID, _READY, _FAILED = b"P", b"R", b"E"
_MAX_MESSAGE = 4096
_CHANNEL_FD = 3
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
JOIN_STEP = "joining"


@dataclass(frozen=True, slots=True)
class Place:
    """The sandbox that a command joins.

    Attributes:
        cgroup_files: files to write "0" to, to join the control group.
        uid: user and group id inside.
        pid: the process on this host whose namespaces to join; None for a chroot.
        root: the directory to change the root to, if `pid` is None.
    """

    cgroup_files: tuple[str, ...]
    uid: int
    pid: int | None = None
    root: str = "/"


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run in a sandbox.

    Attributes:
        argv: the arguments; argv[0] is looked up on the PATH of `env`.
        env: the complete environment.
        workdir: an absolute path inside.
        terminal: (rows, columns) of a new terminal, used instead of the descriptors; None for no terminal.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    workdir: str = "/"
    terminal: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A running command, which is a child of this process.

    Attributes:
        pid: its pid on this host; it leads its own session and process group.
        master: the master end of its terminal; None without one.
    """

    pid: int
    master: int | None = None


def start(place: Place, command: Command, stdio: tuple[int, int, int]) -> Started:
    """Run a command in a sandbox; returns once its exec has happened.

    Args:
        place: the sandbox.
        command: the command.
        stdio: descriptors for its input, output and error output; unused with a terminal.

    Raises:
        ChildError: a step failed: JOIN_STEP, WORKDIR_STEP, or the exec of argv[0].
        OSError: no process or descriptor could be created.
    """
    program = seccomp.build() if place.pid is not None else b""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        handed = (null, null, null) if command.terminal is not None else stdio
        pid = os.fork()
        if pid == 0:
            _child(place, command, program, theirs.fileno(), handed)
        theirs.close()
        return _follow(ours, pid, passed_on=place.pid is not None)
    finally:
        os.close(null)
        theirs.close()
        ours.close()


def _follow(channel: socket.socket, pid: int, *, passed_on: bool) -> Started:
    """In the parent: receive the command's pid and terminal, let it execute, and check that the exec succeeded."""
    master: int | None = None
    try:
        if passed_on:
            joiner, pid = pid, 0
            try:
                pid = int(_expect(channel, _PID)[0])
            finally:
                os.waitpid(joiner, 0)
            _go_on(channel)
        _, descriptors = _expect(channel, _READY)
        master = descriptors[0] if descriptors else None
        _go_on(channel)
        message = channel.recv(_MAX_MESSAGE)
        if message:
            raise _failure(message)
    except BaseException:
        if master is not None:
            os.close(master)
        if pid:
            kill_and_reap(pid)
        raise
    return Started(pid, master)


def _go_on(channel: socket.socket) -> None:
    with suppress(BrokenPipeError):  # the command was killed, because its sandbox has just ended
        channel.send(_GO)


def _expect(channel: socket.socket, kind: bytes) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = channel.recvmsg(_MAX_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, what, data in ancillary:
        if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    if message[:1] == kind:
        return message[1:], list(descriptors)
    if message[:1] == _FAILED:
        raise _failure(message)
    raise ChildError(0, JOIN_STEP, "the sandbox ended")


def _failure(message: bytes) -> ChildError:
    number, step, text = message[1:].decode("utf-8", "replace").split("\t", 2)
    return ChildError(int(number), step, text)


def _child(place: Place, command: Command, program: bytes, channel: int, stdio: tuple[int, int, int]) -> NoReturn:
    step = JOIN_STEP
    try:
        _arrange(channel, stdio)
        walls.default_signals()
        if place.pid is not None:
            _join_namespaces(place.pid, place.cgroup_files)
        else:
            walls.join_groups(place.cgroup_files)
        os.setsid()
        os.umask(0o022)
        if place.pid is not None:
            walls.confine(place.uid, program)
        else:
            walls.change_root(place.root, place.uid)
        master = [_terminal(command.terminal)] if command.terminal is not None else []
        # After the change of user, which clears it (prctl(2)).
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        _send(_READY, master)
        _wait_for_go()
        walls.change_directory(command.workdir)
        step = command.argv[0]
        syscalls.close_from_at_exec(_CHANNEL_FD)
        os.execvpe(command.argv[0], command.argv, command.env)  # noqa: S606 - no shell is the point
    except walls.WorkdirError as error:
        _fail(error.errno, WORKDIR_STEP, error.strerror)
    except OSError as error:
        _fail(error.errno, step, error.strerror)
    except BaseException as error:  # a child must never return into its parent's code
        _fail(0, step, f"{type(error).__name__} {error}")
    finally:
        os._exit(127)


def _fail(number: int | None, step: str, text: str | None) -> None:
    _send(_FAILED + f"{number or 0}\t{step}\t{text}".encode(), [])


def _arrange(channel: int, stdio: tuple[int, int, int]) -> None:
    """Move the descriptors that the child needs to fixed numbers, and close all others."""
    # First to numbers above the fixed ones, so that none is overwritten.
    spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in (*stdio, channel)]
    for fixed, descriptor in enumerate(spare):
        os.dup2(descriptor, fixed, inheritable=fixed != _CHANNEL_FD)
    syscalls.close_from(_CHANNEL_FD + 1)


def _join_namespaces(pid: int, cgroup_files: tuple[str, ...]) -> None:
    """Join the namespaces. Returns in a new child of the parent, which is inside; the calling process exits."""
    pidfd = os.pidfd_open(pid)
    walls.join_groups(cgroup_files)
    os.setgroups([])
    syscalls.new_session_keyring()
    with suppress(FileNotFoundError):  # the kernel has no time namespaces
        # The one for its children: before Linux 6.3 the init itself stays in the host's, see `walls.unshare_time`.
        clock = os.open(f"/proc/{pid}/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(clock, syscalls.CLONE_NEWTIME)
        os.close(clock)
    syscalls.setns(pidfd, ALL_NAMESPACES)
    os.close(pidfd)
    inner = syscalls.clone(syscalls.CLONE_PARENT | syscalls.SIGCHLD)
    if inner:
        _send(_PID + str(inner).encode(), [])
        os._exit(0)
    _wait_for_go()  # its own messages must come after its pid


def _wait_for_go() -> None:
    if os.read(_CHANNEL_FD, 1) != _GO:
        os._exit(0)  # the parent has ended


def _terminal(size: tuple[int, int]) -> int:
    """Open a terminal in the sandbox's devpts as controlling terminal and stdio; return the master's descriptor.

    The terminal belongs to the user who opens it, so this follows the change of user. Its name is never looked up:
    TIOCGPTPEER opens the slave of this master.
    """
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    resize(master, size)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fixed in (0, 1, 2):
        os.dup2(slave, fixed)
    os.close(slave)
    return master


def resize(master: int, size: tuple[int, int]) -> None:
    """Set a terminal's size, (rows, columns); its foreground processes get SIGWINCH (ioctl_tty(2), TIOCSWINSZ)."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def _send(message: bytes, descriptors: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel = socket.socket(fileno=_CHANNEL_FD)
    channel.sendmsg([message[:_MAX_MESSAGE]], ancillary)
    channel.detach()
    for descriptor in descriptors:
        os.close(descriptor)
