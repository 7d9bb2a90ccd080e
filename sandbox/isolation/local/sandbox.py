"""The common part of sandboxes whose workload is a process of this host's kernel, without an engine in between."""

from __future__ import annotations

import errno
import os
import signal
from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sandbox import images
from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, ImageError, SandboxError
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import wait_readable
from sandbox.isolation import ending, supervision
from sandbox.isolation.base import (
    Attached,
    Batched,
    ExecResult,
    Progress,
    Sandbox,
    State,
    Stats,
    WindowSize,
    environment,
)
from sandbox.isolation.local import exec as commands
from sandbox.isolation.local import signals
from sandbox.isolation.relay import Relay, collect, to_descriptor
from sandbox.isolation.supervision import Keeper
from sandbox.kernel import procfs
from sandbox.kernel.cgroup import PARENT, Group, all_groups
from sandbox.kernel.command import Command, Place
from sandbox.kernel.enter import WORKDIR_STEP, Child, ChildError
from sandbox.spec import SANDBOX_UID, Limits
from sandbox.state.processid import ProcessId
from sandbox.state.record import ID_PATTERN, Record

if TYPE_CHECKING:
    from sandbox.isolation.in_force import Inspection


def root_path() -> str:
    """Return the directory of the root filesystem.

    Raises:
        ImageError: it has not been built.
    """
    image = images.find(images.Form.ROOTFS)
    if image is None or image.path is None:
        raise ImageError("the root filesystem has not been built", "sandbox images build")
    return str(image.path)


def prepare_root(progress: Progress) -> str:
    """Return the directory of the root filesystem, which is built if it is missing."""
    return str(images.ensure(images.Form.ROOTFS, progress).path)


class LocalSandbox(Sandbox, Batched):
    """A sandbox whose init is a process of this host. Subclasses define how to create, join and remove it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.group = Group(record.id)
        self._child: Child | None = None

    def adopt_child(self, child: Child, kept: Keeper | None) -> None:
        """Take over a child that waits to be released, and its keeper.

        Raises:
            OSError: the keeper failed.
        """
        self._child = child
        self.keeper = kept
        if kept is not None and kept.child:
            kept.wait_ready()

    def boot(self, deadline: float) -> None:
        """Do nothing: the sandbox uses the host's kernel."""

    def start(self) -> None:
        if self._child is None:
            raise EngineError(f"sandbox {self.record.name} was created by another command", "sandbox rm, then run anew")
        try:
            self._child.release()
        except ChildError as error:
            if error.step == WORKDIR_STEP:
                raise CannotInvokeError(_bad_workdir(self.record.spec.workdir, error)) from None
            if error.step == self.record.spec.argv[0]:
                raise _not_executed(error.step, error) from None
            raise EngineError(f"the workload could not be started: {error.strerror}") from error

    def _init(self) -> ProcessId | None:
        """Return its init if it is alive: the process in the record, if the kernel has it in the sandbox's cgroup."""
        process = self.record.process
        return process if process is not None and process.within(f"{PARENT}/{self.record.id}") else None

    def state(self) -> State:
        process = self.record.process
        if process is None:
            return State(running=False)
        if self._init() is not None:
            return State(running=True, pid=process.pid, paused=self.group.frozen())
        return State(running=False, exit_code=self._exit_code())

    def _exit_code(self) -> int | None:
        """Return the exit code that the keeper of an ended sandbox recorded or reported."""
        found = ending.wait(self.record.directory)
        if found is not None:
            return found.code
        # If another command removes it, the keeper writes nothing, but still reports to the command that started it.
        return None if self.keeper is None else self.keeper.wait_exit_code(0)

    def limits(self) -> Limits:
        try:
            cpus, memory, pids = self.group.read_limits()
        except OSError as error:
            raise EngineError(f"the limits cannot be read: {error}") from error
        process = self._init()
        disk = None if process is None else procfs.size(f"/proc/{process.pid}/root/tmp")
        return Limits(cpus, memory, pids, f"cgroup {self.group.where.mode}, statvfs", disk)

    def stats(self) -> Stats:
        cpu, memory, pids = self.group.usage()
        received, sent = self._network_bytes()
        read, written = self.group.block_io()
        return Stats(cpu, memory, pids, received, sent, read, written)

    @abstractmethod
    def _network_bytes(self) -> tuple[int | None, int | None]:
        """Return the bytes received and sent over its own interface; None if it has none of its own."""

    def resources(self) -> dict[str, Any]:
        return {"control_groups": [str(path) for path in self.group.directories()]}

    def inspection(self) -> Inspection:
        from sandbox.isolation.local import inspection  # no start pays for the form

        limits = None
        with suppress(EngineError):  # the control group is gone, and its limits with it
            limits = self.limits()
        return inspection.inspect(self.record, self.group, self.state(), limits)

    def events(self) -> dict[str, int]:
        """Return the control group's counters of limits hit."""
        return self.group.events()

    def _pid(self) -> int:
        process = self._init()
        if process is None:
            raise EngineError(f"sandbox {self.record.name} is not running")
        return process.pid

    def kill(self, number: int) -> None:
        pid = self._pid()
        if number == signal.SIGKILL:
            self._kill()
            return
        try:
            signals.send(pid, number)
        except ProcessLookupError:
            raise EngineError(f"sandbox {self.record.name} is not running") from None
        except ValueError as error:
            raise EngineError(str(error)) from None

    def pause(self) -> None:
        self._pid()
        try:
            self.group.freeze()
        except FileNotFoundError as error:
            raise EngineError(f"sandbox {self.record.name} cannot be paused: {error.strerror}") from error
        except (OSError, TimeoutError) as error:
            raise EngineError(f"sandbox {self.record.name} cannot be paused: {error}") from error

    def unpause(self) -> None:
        self._pid()
        try:
            self.group.thaw()
        except OSError as error:
            raise EngineError(f"sandbox {self.record.name} cannot be unpaused: {error}") from error

    @abstractmethod
    def _outside(self, uid: int) -> int:
        """Return the user id on this host of a user inside."""

    @abstractmethod
    def _place(self, uid: int) -> Place:
        """Return the place for a command that joins the sandbox as user `uid`."""

    def _run(self, what: Command, *, root: bool, has_input: bool) -> commands.LocalBackend:
        self._pid()
        if self.group.frozen():
            # The command would be frozen like the other processes, and its caller would hang.
            raise EngineError(f"sandbox {self.record.name} is paused", f"sandbox unpause {self.record.name}")
        name = what.argv[0]
        uid = 0 if root else SANDBOX_UID
        try:
            return commands.start(
                self._place(uid),
                what,
                has_input=has_input,
                owner=self._outside(uid),
                alive=lambda: self._init() is not None,
            )
        except ChildError as error:
            if error.step == WORKDIR_STEP:
                raise CannotInvokeError(_bad_workdir(what.workdir, error)) from None
            if error.step != name and error.errno == errno.EAGAIN:  # fork(2): a control group's limit is reached
                raise EngineError(
                    f"{name!r} was not started: the sandbox has reached its limit on processes", "a higher --pids-limit"
                ) from None
            if error.step != name:
                hint = "it may have ended a moment ago"
                raise EngineError(f"the sandbox could not be joined: {error.strerror}", hint) from error
            raise _not_executed(name, error) from error
        except OSError as error:
            raise EngineError(f"the command could not be started: {error.strerror}") from error

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        what = Command(tuple(argv), environment(self.record.spec), self.record.spec.workdir)
        return collect(self._run(what, root=root, has_input=False), argv, timeout)

    def attach(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        terminal: WindowSize | None = None,
        root: bool = False,
        env: Sequence[tuple[str, str]] = (),
        workdir: str | None = None,
    ) -> Attached:
        """Run a command as `Sandbox.attach` does. It is killed when the calling thread ends, see `kernel.command`."""
        variables = environment(self.record.spec)
        if terminal is not None:
            variables.setdefault("TERM", "xterm")
        what = Command(
            tuple(argv),
            variables | dict(env),
            self.record.spec.workdir if workdir is None else workdir,
            None if terminal is None else (terminal.rows, terminal.columns),
        )
        return Relay(
            self._run(what, root=root, has_input=stdin is not None),
            stdin=stdin,
            stdout=to_descriptor(stdout),
            stderr=to_descriptor(stderr),
            terminal=terminal is not None,
        )

    def stop(self, grace: float) -> int | None:
        process = self._init()
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            with suppress(OSError):  # no freezer, so nothing is frozen
                self.group.thaw()
            try:
                self.wait(grace)
            except TimeoutError:
                self._kill()
                self.wait(5.0)
        self._kill()
        return self.state().exit_code

    def _kill(self) -> None:
        try:
            self.group.kill()
        except (OSError, TimeoutError) as error:
            raise EngineError(str(error)) from error

    def wait(self, timeout: float | None = None) -> int | None:
        process = self._init()
        if process is not None:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(process.pid)
                try:
                    if self._init() is not None and not wait_readable(pidfd, timeout):
                        raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s")
                finally:
                    os.close(pidfd)
        return self.state().exit_code

    def kill_soon(self) -> None:
        with suppress(OSError, TimeoutError):
            # Otherwise all the keepers would load libraries at the same time to record the end.
            supervision.silence(self.record.directory)
            self.group.kill(timeout=0)

    def remove_soon(self) -> None:
        with suppress(OSError, TimeoutError):
            self.group.remove(timeout=0)

    def _end(self) -> None:
        """Kill all its processes, wait for its keeper to exit, and remove the control group."""
        if self._child is not None:
            self._child.close()
        try:
            # Before the workload ends: the keeper must not record the end of a sandbox that is being removed.
            supervision.silence(self.record.directory)
            self.group.kill()
            reached(Failpoint.PROCESSES_KILLED)
            self.group.remove()
        except (OSError, TimeoutError) as error:
            raise EngineError(f"the control group of {self.record.name} could not be removed: {error}") from error
        reached(Failpoint.CGROUP_REMOVED)
        try:
            supervision.wait_gone(self.record.directory)
        except TimeoutError as error:
            raise EngineError(str(error)) from error
        if self.keeper is not None:
            self.keeper.wait_exit_code(0)
            self.keeper.close()


def _not_executed(name: str, error: ChildError) -> SandboxError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFoundError(f"there is no command {name!r} inside")
    return CannotInvokeError(f"{name!r} cannot be executed: {os.strerror(error.errno or 0)}")


def _bad_workdir(path: str, error: ChildError) -> str:
    return f"the working directory {path!r} cannot be entered inside: {os.strerror(error.errno or 0)}"


def remember(record: Record, child: Child) -> None:
    """Store the child's process in the record.

    Raises:
        EngineError: it has already ended.
    """
    record.process = ProcessId.of(child.pid)
    if record.process is None:
        try:
            child.check()
        except ChildError as error:
            raise EngineError(f"the sandbox's first process died: {error.strerror}") from None
        raise EngineError("the sandbox's first process died at once")


def prune_groups(known: Collection[str], *, dry_run: bool) -> list[str]:
    """Remove our control groups whose id is not known, and kill the processes in them.

    Raises:
        EngineError: one cannot be removed.
    """
    found = []
    for ident in all_groups():
        if ident in known or not ID_PATTERN.fullmatch(ident):
            continue
        if not dry_run:
            try:
                Group(ident).remove()
            except (OSError, TimeoutError) as error:
                raise EngineError(f"the control group {ident} could not be removed: {error}") from error
        found.append(f"control group {ident}")
    return found
