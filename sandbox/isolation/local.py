"""What sandboxes have in common whose workload is a process of this host's kernel, with no engine in between."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress

from sandbox import capability, images
from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, ImageError
from sandbox.isolation.base import ExecResult, Progress, Sandbox, State, Stats, environment
from sandbox.kernel.cgroup import Group, all_groups
from sandbox.kernel.enter import Child, ChildError
from sandbox.processid import ProcessId
from sandbox.record import ID_PATTERN, Record
from sandbox.spec import SANDBOX_UID, Limits

_LOG_CHUNK = 65536
_FOLLOW_PAUSE = 0.05
"""Seconds between looks at a log that is followed."""


def root_path() -> str:
    """The directory of the root filesystem.

    Raises:
        ImageError: it has not been built.
    """
    image = images.find(images.Form.ROOTFS)
    if image is None or image.path is None:
        raise ImageError("the root filesystem has not been built", "sandbox images build")
    return str(image.path)


def prepare_root(progress: Progress) -> str:
    """The directory of the root filesystem, built where it is missing."""
    return str(images.ensure(images.Form.ROOTFS, progress).path)


def missing(level: str) -> Sequence[capability.Missing]:
    """What the host lacks for a level."""
    return capability.missing_for(level)


class LocalSandbox(Sandbox):
    """A sandbox whose init is a process of this host. Subclasses say how to make, join and clear it away."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.group = Group(record.id)
        self._child: Child | None = None
        self._exit_code: int | None = None
        self._ours = False

    def adopt_child(self, child: Child) -> None:
        """Take over a child that was made and waits."""
        self._child = child
        self._ours = True

    def boot(self, deadline: float) -> None:
        """The host's kernel is the sandbox's kernel: there is nothing to boot."""

    def start(self) -> None:
        if self._child is None:
            raise EngineError(f"sandbox {self.record.name} was not made by this command", "sandbox rm it, and run anew")
        try:
            self._child.release()
        except ChildError as error:
            raise EngineError(f"the workload could not be started: {error.strerror}") from error

    def state(self) -> State:
        process = self.record.process
        if process is None:
            return State(running=False)
        if self._ours:
            self._reap(process.pid)
        if process.alive():
            return State(running=True, pid=process.pid)
        return State(running=False, exit_code=self._exit_code)

    def _reap(self, pid: int) -> None:
        """Collect the exit code, which only the parent can; after that the pid is nobody's."""
        with suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                self._exit_code = code if code >= 0 else 128 - code
                self._ours = False

    def limits(self) -> Limits:
        try:
            cpus, memory, pids = self.group.read_limits()
        except OSError as error:
            raise EngineError(f"the limits cannot be read: {error}") from error
        return Limits(cpus, memory, pids, f"cgroup {self.group.where.mode}")

    def stats(self) -> Stats:
        return Stats(*self.group.usage())

    def events(self) -> dict[str, int]:
        """The control group's counters of limits met."""
        return self.group.events()

    def _pid(self) -> int:
        process = self.record.process
        if process is None or not process.alive():
            raise EngineError(f"sandbox {self.record.name} is not running")
        return process.pid

    @abstractmethod
    def _joiner(self, uid: int) -> Callable[[], None]:
        """What a child runs between fork and exec to get inside, as user `uid` there."""

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        self._pid()
        enter = self._joiner(0 if root else SANDBOX_UID)
        env = environment(self.record.spec)
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                preexec_fn=enter,  # noqa: PLW1509 - the child must join the sandbox between fork and exec
            )
        except (FileNotFoundError, NotADirectoryError):
            raise CommandNotFoundError(f"there is no command {argv[0]!r} inside") from None
        except OSError as error:
            raise CannotInvokeError(f"{argv[0]!r} cannot be executed: {error.strerror}") from error
        except subprocess.SubprocessError as error:
            raise EngineError("the sandbox could not be joined: it may have ended a moment ago") from error
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException as error:
                process.kill()  # what it runs inside dies with it: PR_SET_PDEATHSIG
                process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise TimeoutError(f"{argv[0]!r} took longer than {timeout:g} s") from None
                raise
        code = process.returncode
        return ExecResult(code if code >= 0 else 128 - code, out, err)

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        try:
            stream = self.record.log_path.open("rb", buffering=0)
        except FileNotFoundError:
            return
        with stream:
            while True:
                # Asked before the read: what it wrote last is then still read.
                running = follow and self.state().running
                chunk = stream.read(_LOG_CHUNK)
                if chunk:
                    yield chunk
                elif not running:
                    return
                else:
                    time.sleep(_FOLLOW_PAUSE)

    def stop(self, grace: float) -> int | None:
        process = self.record.process
        if process is not None and process.alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
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
        process = self.record.process
        if process is None or not process.alive():
            return self.state().exit_code
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return self.state().exit_code
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if process.alive() and not poller.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s")
        finally:
            os.close(pidfd)
        return self.state().exit_code

    def _end(self) -> None:
        """Kill everything of it, reap what is ours, and remove the control group."""
        if self._child is not None:
            self._child.close()
        process = self.record.process
        if process is not None and process.alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        try:
            self.group.remove()
        except (OSError, TimeoutError) as error:
            raise EngineError(f"the control group of {self.record.name} could not be removed: {error}") from error
        if process is not None and self._ours:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
            self._ours = False


def remember(record: Record, child: Child) -> None:
    """Note the process in the record.

    Raises:
        EngineError: it is gone already.
    """
    record.process = ProcessId.of(child.pid)
    if record.process is None:
        raise EngineError("the sandbox's first process died at once")


def sweep_groups(known: Collection[str], *, dry_run: bool) -> list[str]:
    """Remove control groups of ours whose id is not known, with what runs in them.

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
