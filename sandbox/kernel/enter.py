"""Create the first process of a sandbox, in new namespaces or in a chroot. `command` joins it later.

The child imports nothing and always ends in exec or os._exit. It talks to the command that creates the sandbox over two
pipes: the command writes a byte to `control` to let the child continue, and the child writes its progress or an error
to `report`. If the command dies, the child reads the end of `control` and exits, and its namespaces disappear with it.

The child's parent need not be the command: it is the process in which `start` calls its argument, such as the keeper
(`sandbox.isolation.keeper`).

Sources: namespaces(7), user_namespaces(7), pid_namespaces(7), time_namespaces(7), clone(2), credentials(7).
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from sandbox.kernel import caps, rootfs, seccomp, syscalls, trees, walls

ALL_NAMESPACES = sum(syscalls.NAMESPACES.values()) & ~syscalls.CLONE_NEWTIME
"""The namespaces that setns(2) joins by a pidfd; the time namespace is joined separately, see `walls.unshare_time`."""
_CLONE_FLAGS = (ALL_NAMESPACES & ~syscalls.CLONE_NEWCGROUP) | syscalls.SIGCHLD
_CONTROL_FD, _REPORT_FD, _FIRST_TREE_FD = 3, 4, 5
WORKDIR_STEP = "working directory"
_GO = b"g"
_READY, _FAILED = b"R", b"E"
_MAX_REPORT = 4096


class ChildError(OSError):
    """A step in the child failed; errno and text are the kernel's.

    Attributes:
        step: the name of the step.
    """

    def __init__(self, number: int, step: str, text: str) -> None:
        super().__init__(number, f"{step}: {text}" if step else text)
        self.step = step


@dataclass(frozen=True, slots=True)
class Plan:
    """The child's settings, all decided before the fork.

    Attributes:
        argv: the command; argv[0] is an absolute path inside.
        env: its complete environment.
        uid: user and group id inside.
        root: the root filesystem's directory, a path outside.
        outputs: descriptors that become its stdout and stderr.
        cgroup_files: files to write "0" to, to join the control group.
        hostname: inside; None keeps the host's.
        layout: the mounts on the root filesystem; used only by the child in namespaces.
        workdir: the working directory, an absolute path inside.
        program: if argv[0] is an init, the program that it runs, looked up on the PATH of `env`. The child checks that
            it can be executed, so that the error is reported here. Empty for no check.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    uid: int
    root: str
    outputs: tuple[int, int]
    cgroup_files: tuple[str, ...]
    hostname: str | None = None
    layout: rootfs.Layout = field(default_factory=rootfs.Layout)
    workdir: str = "/"
    program: str = ""


MAPPED_COUNT = 65536
OWNER = 0x6FFFFFFF
"""The user on the host that owns the user namespaces, and nothing else. The kernel charges resources that it counts per
user, such as inotify instances, message queues and queued signals, to the owner as well (user_namespaces(7)). If the
owner were root, a sandbox could exhaust the limits of the host's root."""


Start = Callable[[Callable[[], int]], int]
"""Calls its argument, which creates the child, in the process that is to be the parent, and returns the child's pid.
That process has one thread."""


def _here(make: Callable[[], int]) -> int:
    return make()


Enrol = Callable[[], None]
"""Creates the control group. It is called after the child was created, which starts on another CPU meanwhile."""


def _no_group() -> None:
    """Do nothing: the control group exists already."""


class Child:
    """A child that waits to execute: `release` lets it, `close` makes it exit."""

    def __init__(self, control: int, report: int) -> None:
        self.pid = 0
        self._control = control
        self._report = report

    def _go(self) -> None:
        with suppress(BrokenPipeError):  # the child died; its report says why
            os.write(self._control, _GO)

    def _expect(self, kind: bytes) -> bytes:
        message = b""
        # Each report is one line. Two of them may be in the pipe, so only one line is read.
        while not message.endswith(b"\n"):
            got = os.read(self._report, 1)
            if not got:
                break
            message += got
        if message[:1] == kind:
            return message[1:].strip()
        if message[:1] == _FAILED:
            raise _failure(message)
        raise ChildError(0, "", "the child ended without a report")

    def release(self) -> None:
        """Wait until the child has confined itself, let it execute, and return once it has.

        Raises:
            ChildError: a step in the child failed.
        """
        self._expect(_READY)
        self._go()
        rest = os.read(self._report, _MAX_REPORT)
        self.close()
        if rest[:1] == _FAILED:
            raise _failure(rest)

    def check(self) -> None:
        """Raise the child's error, if it has reported one; does not wait.

        Raises:
            ChildError
        """
        poller = select.poll()
        poller.register(self._report, select.POLLIN)
        if poller.poll(0) and (message := os.read(self._report, _MAX_REPORT))[:1] == _FAILED:
            raise _failure(message)

    def close(self) -> None:
        """Close our ends of the pipes; a child that still waits exits."""
        for name in ("_control", "_report"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                setattr(self, name, -1)
                os.close(descriptor)


def _failure(message: bytes) -> ChildError:
    number, step, text = message[1:].decode("utf-8", "replace").strip().split("\t", 2)
    return ChildError(int(number), step, text)


def spawn_namespaced(
    plan: Plan, mapped_base: int, plug: Callable[[int], None], start: Start = _here, enrol: Enrol = _no_group
) -> Child:
    """Create a child in new namespaces, ready to execute.

    It is created by clone(2) directly, because a fork before that would copy the page tables once more. This is safe
    only in a process with one thread.

    Args:
        plan: the child's settings.
        mapped_base: see `map_ids`.
        plug: called with the child's pid once its namespaces exist, to connect its network.
        start: creates the child in another process; by default it is created in this one.
        enrol: creates the control group while the child starts; by default the group exists already.

    Raises:
        ChildError: a step in the child failed.
        OSError: clone failed.
    """
    program = seccomp.build()
    child = _spawn(plan, lambda: enter_namespaces(plan, program), clone_bare, start)
    _equip(plan, child, mapped_base, plug, enrol)
    return child


def spawn_warm(
    plan: Plan, mapped_base: int, plug: Callable[[int], None], ask: Callable[[list[int]], int], enrol: Enrol = _no_group
) -> Child:
    """Create a child as `spawn_namespaced` does, but from a zygote, which is its parent; it does not exec (`zygote`).

    Args:
        plan: the child's settings, without trees, because descriptors of mounts are not passed to the zygote.
        mapped_base: see `map_ids`.
        plug: as for `spawn_namespaced`.
        ask: requests a child from the zygote, with the descriptors (control, report, stdout, stderr); returns its pid.
        enrol: as for `spawn_namespaced`.

    Raises:
        ChildError, OSError
    """
    child, theirs = _pipes()
    try:
        child.pid = ask([*theirs, *plan.outputs])
    except BaseException:
        child.close()
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    _equip(plan, child, mapped_base, plug, enrol)
    return child


def _equip(plan: Plan, child: Child, mapped_base: int, plug: Callable[[int], None], enrol: Enrol) -> None:
    """Set up what a child in new namespaces cannot set up itself; kill it if that fails."""
    try:
        map_ids(child.pid, mapped_base)
        if plan.layout.trees:
            trees.map_ids(plan.layout.trees, mapped_base, MAPPED_COUNT)
        enrol()
        child._go()
        try:
            plug(child.pid)  # meanwhile the child mounts its root and confines itself, on another CPU if possible
        except Exception:
            child.check()  # if the child has died, its own error is the cause
            raise
    except BaseException:
        kill_and_reap(child.pid)
        child.close()
        raise


def enter_namespaces(plan: Plan, program: bytes) -> None:
    """In the child, in its new namespaces: do every step up to the exec, for which it waits to be released."""
    walls.unshare_time()
    _wait_for_go()
    walls.join_groups(plan.cgroup_files)
    # After joining: the root of the new cgroup namespace is the group itself.
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    _be_root_inside(_renumbered(plan))
    walls.confine(plan.uid, program)
    _say(_READY)
    _wait_for_go()
    walls.change_directory(plan.workdir)  # a wrong directory is an error of the start, not of the creation


def clone_bare(more: int = 0, without: int = 0) -> int:
    """Clone into new namespaces as OWNER, without supplementary groups, which could not be dropped inside any more.

    The child keeps the caller's access to files until it changes its user inside (credentials(7), filesystem user id).

    Args:
        more: additional flags for clone(2).
        without: flags of namespaces that are not to be created.
    """
    groups, users, bits = os.getgroups(), os.getresuid(), caps.securebits()
    parent, death_signal = os.getppid(), syscalls.parent_death_signal()

    def restore() -> None:
        os.setresuid(*users)
        caps.set_securebits(bits)
        os.setgroups(groups)
        if death_signal:  # a change of user clears it (prctl(2), PR_SET_PDEATHSIG)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os.kill(os.getpid(), death_signal)

    os.setgroups([])
    caps.set_securebits(bits | caps.NO_SETUID_FIXUP)  # capabilities survive the change of user
    try:
        os.setresuid(OWNER, OWNER, users[2])
        syscalls.setfsuid(users[1])
        made = syscalls.clone((_CLONE_FLAGS | more) & ~without)
    except BaseException:
        restore()
        raise
    if made:
        restore()
    return made


def spawn_chrooted(plan: Plan, start: Start = _here) -> Child:
    """Create a child in a chroot and a control group, as another user, without further isolation.

    Raises:
        ChildError, OSError
    """

    def body() -> None:
        walls.join_groups(plan.cgroup_files)
        walls.change_root(plan.root, plan.uid)
        _say(_READY)
        _wait_for_go()
        walls.change_directory(plan.workdir)

    return _spawn(plan, body, lambda: syscalls.clone(syscalls.SIGCHLD), start)


def _pipes() -> tuple[Child, tuple[int, int]]:
    """Create the pipes `control` and `report`: return a Child with our ends, and the child's ends."""
    control_read, control_write = os.pipe()
    report_read, report_write = os.pipe()
    return Child(control_write, report_read), (control_read, report_write)


def _spawn(plan: Plan, body: Callable[[], None], clone: Callable[[], int], start: Start) -> Child:
    child, theirs = _pipes()

    def make() -> int:
        pid = clone()
        if pid == 0:
            run_child(plan, body, theirs)
        return pid

    try:
        child.pid = start(make)
    except BaseException:
        child.close()
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return child


def _execute(plan: Plan) -> NoReturn:
    env = dict(plan.env)
    if plan.program:
        walls.check_program(plan.program, env.get("PATH", ""))
    # No descriptor that an earlier step opened may be inherited by the workload.
    syscalls.close_from_at_exec(_CONTROL_FD)
    os.execve(plan.argv[0], plan.argv, env)  # noqa: S606 - no shell is the point


def run_child(
    plan: Plan,
    body: Callable[[], None],
    keep: tuple[int, int],
    finish: Callable[[Plan], NoReturn] = _execute,
) -> NoReturn:
    """Run the child after the fork: `body`, then `finish`; every error is reported. Never returns.

    Args:
        plan: the child's settings.
        body: confines the process.
        keep: the child's ends of the pipes `control` and `report`.
        finish: becomes the workload; by default execve(2).
    """
    gc.disable()  # a collection would touch, and thereby copy, most pages of the parent
    step = "descriptors"
    try:
        _arrange(keep, plan.outputs, plan.layout.trees)
        os.setsid()
        os.umask(0o022)
        step = "namespaces"
        body()
        step = plan.program or plan.argv[0]
        finish(plan)
    except walls.WorkdirError as error:
        _say(_FAILED + f"{error.errno or 0}\t{WORKDIR_STEP}\t{error.strerror}".encode())
    except OSError as error:
        _say(_FAILED + f"{error.errno or 0}\t{step}\t{error.strerror} {error.filename or ''}".encode())
    except BaseException as error:  # a child must never return into its parent's code
        _say(_FAILED + f"0\t{step}\t{type(error).__name__} {error}".encode())
    finally:
        os._exit(127)


def _arrange(keep: tuple[int, int], outputs: tuple[int, int], attached: Sequence[trees.Tree]) -> None:
    """Move the descriptors that the child needs to fixed numbers, and close all others."""
    walls.default_signals()
    # First to numbers above the fixed ones, so that none is overwritten.
    above = _FIRST_TREE_FD + len(attached) + 64
    spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in (*keep, *outputs)]
    copies = [fcntl.fcntl(tree.descriptor, fcntl.F_DUPFD_CLOEXEC, above) for tree in attached]
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(spare[2], 1)
    os.dup2(spare[3], 2)
    for descriptor, fixed in zip(spare[:2], (_CONTROL_FD, _REPORT_FD), strict=True):
        os.dup2(descriptor, fixed, inheritable=False)
    for fixed, descriptor in enumerate(copies, _FIRST_TREE_FD):
        os.dup2(descriptor, fixed, inheritable=False)
    syscalls.close_from(_FIRST_TREE_FD + len(attached))


def _renumbered(plan: Plan) -> Plan:
    """Return the plan with its trees at the descriptors to which `_arrange` moved them."""
    if not plan.layout.trees:
        return plan
    moved = (replace(tree, descriptor=fixed) for fixed, tree in enumerate(plan.layout.trees, _FIRST_TREE_FD))
    return replace(plan, layout=replace(plan.layout, trees=tuple(moved)))


def _say(message: bytes) -> None:
    os.write(_REPORT_FD, message.replace(b"\n", b" ")[: _MAX_REPORT - 1] + b"\n")


def _wait_for_go() -> None:
    if os.read(_CONTROL_FD, 1) != _GO:
        os._exit(0)  # the parent has ended, or closed the pipe


def _be_root_inside(plan: Plan) -> None:
    # Opened as the host's root, which may search every directory on the path, and in the new mount namespace: a mount
    # of the old one cannot be bound here.
    root = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    skeleton = None
    if plan.layout.skeleton is not None:
        skeleton = os.open(plan.layout.skeleton, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    if plan.hostname is not None:
        socket.sethostname(plan.hostname)
    syscalls.new_session_keyring()
    rootfs.enter(root, skeleton, plan.layout)
    os.close(root)
    if skeleton is not None:
        os.close(skeleton)
    trees.close(plan.layout.trees)


def map_ids(pid: int, base: int) -> None:
    """Map 65,536 ids of a child's user namespace to ids from `base`, and deny setgroups(2) in it for good.

    Raises:
        OSError
    """
    line = f"0 {base} {MAPPED_COUNT}\n"
    for name, text in (("setgroups", "deny"), ("uid_map", line), ("gid_map", line)):
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")


def kill_and_reap(pid: int) -> None:
    """Send SIGKILL to a process, and wait for it if it is a child of this one."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
