"""The first process of a sandbox: one that ends up in fresh namespaces, or one in a chroot. `command` joins either.

The child imports nothing and always ends in exec or os._exit. It and the command that makes the sandbox talk over two
pipes: by `control` the command lets the child go on, one letter at a time; by `report` the child says how far it came,
or what failed. When the command dies, the child reads the end of `control` and exits, and its namespaces die with it.

The child's parent need not be the command itself: whoever `start` calls its argument in is (`sandbox.isolation.keeper`
forks for that).

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
"""What a pidfd's owner has for sure; the time namespace is joined apart, see `walls.unshare_time`."""
_CLONE_FLAGS = (ALL_NAMESPACES & ~syscalls.CLONE_NEWCGROUP) | syscalls.SIGCHLD
_CONTROL_FD, _REPORT_FD, _FIRST_TREE_FD = 3, 4, 5
WORKDIR_STEP = "working directory"
_GO = b"g"
_READY, _FAILED = b"R", b"E"
_MAX_REPORT = 4096


class ChildError(OSError):
    """The child failed at a named step; errno and text are the kernel's.

    Attributes:
        step: what it was at.
    """

    def __init__(self, number: int, step: str, text: str) -> None:
        super().__init__(number, f"{step}: {text}" if step else text)
        self.step = step


@dataclass(frozen=True, slots=True)
class Plan:
    """What the child does. Everything is decided before the fork.

    Attributes:
        argv: the command, argv[0] an absolute path inside.
        env: its whole environment.
        uid: user and group inside.
        root: path of the root filesystem's directory, outside.
        outputs: descriptors that become its stdout and stderr.
        cgroup_files: files to write "0" to, to join the control group.
        hostname: inside; None keeps the host's.
        layout: what is mounted on the root filesystem; used by the namespaced child alone.
        workdir: absolute path inside that the command starts in.
        program: what the command runs, looked up on the PATH of `env`, where that is not argv[0] itself but what
            this, an init, runs: that it cannot be executed is told here. Empty for none.
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
"""The owner of the user namespaces, outside: a user who owns nothing else. What the kernel counts per user, such as
inotify instances, message queues and queued signals, it charges to the owner as well (user_namespaces(7)): were that
root, one sandbox could use up what all of the host's root has."""


Start = Callable[[Callable[[], int]], int]
"""Calls its argument, which makes the child, in the process that is to be the parent; returns the child's pid. That
process has one thread."""


def _here(make: Callable[[], int]) -> int:
    return make()


Enrol = Callable[[], None]
"""Makes a control group. Not before the child: that starts on another CPU meanwhile, if there is one."""


def _no_group() -> None:
    """The group is there already."""


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
            raise _failure(message)
        raise ChildError(0, "", "the child ended without a word")

    def release(self) -> None:
        """Wait until it stands behind its walls, let it exec, and return once it has.

        Raises:
            ChildError: what failed in it.
        """
        self._expect(_READY)
        self._go()
        rest = os.read(self._report, _MAX_REPORT)
        self.close()
        if rest[:1] == _FAILED:
            raise _failure(rest)

    def check(self) -> None:
        """Raise what the child has failed of, if it has; returns at once.

        Raises:
            ChildError
        """
        poller = select.poll()
        poller.register(self._report, select.POLLIN)
        if poller.poll(0) and (message := os.read(self._report, _MAX_REPORT))[:1] == _FAILED:
            raise _failure(message)

    def close(self) -> None:
        """Close our ends; a child that still waits exits."""
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
    """Make a child in fresh namespaces, ready to exec.

    A raw clone(2) makes it, without a fork first that would copy the page tables once more. That is safe only in a
    process of one thread.

    Args:
        plan: what to do.
        mapped_base: see `map_ids`.
        plug: called with the child's pid once its namespaces exist, to give it its network.
        start: where the child is made; by default here.
        enrol: makes the control group that it joins, while it starts; by default the group is there.

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
    """As `spawn_namespaced`, by a zygote: the child is its child, and goes on without an exec (see `zygote`).

    Args:
        plan: what to do, without trees: descriptors of mounts are not passed on.
        mapped_base: see `map_ids`.
        plug: as for `spawn_namespaced`.
        ask: has the zygote make a child with these descriptors (control, report, stdout, stderr); returns its pid.
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
    """Give a child that waits in its namespaces what it cannot give itself; where that fails, end it."""
    try:
        map_ids(child.pid, mapped_base)
        if plan.layout.trees:
            trees.map_ids(plan.layout.trees, mapped_base, MAPPED_COUNT)
        enrol()
        child._go()
        try:
            plug(child.pid)  # while the child mounts its root and puts up its walls, on another CPU if there is one
        except Exception:
            child.check()  # where it died, that is what it died of
            raise
    except BaseException:
        kill_and_reap(child.pid)
        child.close()
        raise


def enter_namespaces(plan: Plan, program: bytes) -> None:
    """In the child, in its fresh namespaces: everything up to the exec, which waits for the parent's last word."""
    walls.unshare_time()
    _wait_for_go()
    walls.join_groups(plan.cgroup_files)
    # After joining: the root of the new cgroup namespace is the group itself.
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    _be_root_inside(_renumbered(plan))
    walls.confine(plan.uid, program)
    _say(_READY)
    _wait_for_go()
    walls.change_directory(plan.workdir)  # a mistake of the user's, if any: told when the workload is started


def clone_bare(more: int = 0, without: int = 0) -> int:
    """Clone into new namespaces, as OWNER, and without supplementary groups: inside they could not be dropped any more.

    The child keeps the caller's right to files until it becomes somebody inside (credentials(7), the file system user).

    Args:
        more: flags of clone(2) beside the usual ones.
        without: namespaces among those that are not made anew.
    """
    groups, users, bits = os.getgroups(), os.getresuid(), caps.securebits()
    parent, farewell = os.getppid(), syscalls.parent_death_signal()

    def restore() -> None:
        os.setresuid(*users)
        caps.set_securebits(bits)
        os.setgroups(groups)
        if farewell:  # a change of user takes it away (prctl(2), PR_SET_PDEATHSIG)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, farewell)
            if os.getppid() != parent:
                os.kill(os.getpid(), farewell)

    os.setgroups([])
    caps.set_securebits(bits | caps.NO_SETUID_FIXUP)  # the capabilities stay over the change of user
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
    """Make a child in a chroot and a control group, as another user, and behind no other wall.

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
    """A child's ends of `control` and `report`, and the other ends."""
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
    # Whatever the steps before have opened, or will in a later version of them: nothing of it goes inside.
    syscalls.close_from_at_exec(_CONTROL_FD)
    os.execve(plan.argv[0], plan.argv, env)  # noqa: S606 - no shell is the point


def run_child(
    plan: Plan,
    body: Callable[[], None],
    keep: tuple[int, int],
    finish: Callable[[Plan], NoReturn] = _execute,
) -> NoReturn:
    """The life of the child, after the fork: `body`, then `finish`; whatever goes wrong is reported.

    Args:
        plan: what to do.
        body: the way behind the walls.
        keep: its ends of the pipes `control` and `report`.
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
    """Put what the child needs at fixed numbers and close everything else, before anything can go wrong."""
    walls.default_signals()
    # First out of the way of the fixed numbers, then onto them.
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
    """The plan with its trees at the numbers that `_arrange` gave them."""
    if not plan.layout.trees:
        return plan
    moved = (replace(tree, descriptor=fixed) for fixed, tree in enumerate(plan.layout.trees, _FIRST_TREE_FD))
    return replace(plan, layout=replace(plan.layout, trees=tuple(moved)))


def _say(message: bytes) -> None:
    os.write(_REPORT_FD, message.replace(b"\n", b" ")[: _MAX_REPORT - 1] + b"\n")


def _wait_for_go() -> None:
    if os.read(_CONTROL_FD, 1) != _GO:
        os._exit(0)  # the parent is gone or has changed its mind


def _be_root_inside(plan: Plan) -> None:
    # Opened by the host's root, who may pass every directory on the way, and in the new mount namespace: a mount of
    # the old one cannot be bound here.
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
    """SIGKILL to a child, and wait for it where it is ours."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
