"""A sandbox that is a Docker container, under the default runtime or under gVisor's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sandbox.errors import EngineError, UnavailableError
from sandbox.failpoints import Failpoint, reached
from sandbox.host.docker import Engine, NoAnswerError, RefusalError
from sandbox.isolation import ending, relay, supervision
from sandbox.isolation.base import Attached, ExecResult, Sandbox, State, Stats, WindowSize
from sandbox.isolation.docker import cgroup, mounts, network, output, usage
from sandbox.isolation.docker import exec as commands
from sandbox.spec import SANDBOX_UID, Limits
from sandbox.state.processid import ProcessId
from sandbox.state.record import Record

if TYPE_CHECKING:
    from sandbox.isolation.in_force import Inspection
    from sandbox.isolation.inspection import View

NAME_PREFIX = "sbx-"
_GONE = 404
_CONFLICT = 409
_FAILED = 500
_REMOVAL_TIMEOUT = 30.0
"""Seconds to wait for a removal that the engine has begun."""
_END_NOTED = 2.0
"""Seconds to wait until the engine has noted the end of a container; it takes about 0.01."""
_LATE_CREATION = 1.0
"""Seconds within which a container may still appear after its create call got no answer."""
_KEPT_BY_INIT = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGCHLD, signal.SIGCONT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
    | {signal.SIGSTOP, signal.SIGSYS, signal.SIGTRAP, signal.SIGTTIN, signal.SIGTTOU}
)
"""Signals that the init does not forward: those for its own faults, and those of job control (tini(1))."""


@dataclass(frozen=True, slots=True)
class Handle:
    """The data in the record by which later commands find the container.

    Attributes:
        socket: path of its engine's socket.
        container: its id; None while it is being created.
    """

    socket: str
    container: str | None = None


class ContainerSandbox(Sandbox):
    """A container.

    Attributes:
        kernel_shared: whether its processes are processes of the engine's host.
        uncertain: whether the create call got no answer, so that the container may exist or still appear.
        sources: the files at the sources of its mounts when it was created; see `mounts.identities`.
    """

    kernel_shared: ClassVar[bool] = True

    def __init__(self, record: Record, engine: Engine) -> None:
        self.record = record
        self.engine = engine
        self.uncertain = False
        self.sources: dict[str, tuple[int, int]] = {}

    @property
    def name(self) -> str:
        """The container's name."""
        return NAME_PREFIX + self.record.id

    def boot(self, deadline: float) -> None:
        """Do nothing: the kernel is the host's, or is started by `start` (gVisor)."""

    def start(self) -> None:
        with closing(output.attach(self.engine, self.name)) as stream:
            with self.engine.talking("the container could not be started") as api:
                api.start(self.name)
            # While the workload starts, note its process: later commands use it to see whether the sandbox runs.
            pid = self._pid(self.inspect())
            self.keeper = output.keep(self.record, stream, self.engine, self.name, pid)
        self.record.process = None if pid is None else ProcessId.of(pid)
        if pid is not None:
            network.remove_default_route(pid)
        if self.sources:
            self._verify_mounts(pid)

    def _verify_mounts(self, pid: int | None) -> None:
        """Check that the intended files are mounted; the command may end before this can be seen.

        Raises:
            EngineError: other files are mounted, or the mounts cannot be seen.
        """
        try:
            if pid is not None:
                mounts.verify(self.record.spec, self.record, self.sources, self._sees_mounts(pid))
                return
        except mounts.UnseenError as error:
            try:
                self.wait(_END_NOTED)
            except TimeoutError:
                raise error from None
        mounts.verify_sources(self.sources)

    def _sees_mounts(self, pid: int) -> int:
        """Return the pid of a process on this host that sees the sandbox's mounts; `pid` is the init's.

        Raises:
            UnseenError: there is none.
        """
        return pid

    def _pid(self, found: dict[str, Any] | None) -> int | None:
        """Return the pid of its init on this host; None if it does not run."""
        if found is None or not found["State"]["Running"]:
            return None
        return found["State"]["Pid"] or None

    def inspect(self) -> dict[str, Any] | None:
        """Return the engine's description of the container; None if it is gone.

        Raises:
            EngineError
        """
        return self.engine.look(f"/containers/{self.name}/json", "the container cannot be inspected")

    def alive(self) -> bool:
        """Return whether it runs, paused or not."""
        process = self.record.process
        if process is not None and process.alive():
            return True  # without asking the engine, as loading the SDK takes 0.1 s
        found = self.inspect()
        return found is not None and bool(found["State"]["Running"])

    def state(self) -> State:
        process = self.record.process
        if self.kernel_shared and process is not None and process.alive():
            group = cgroup.find(self._container, process.pid)
            paused = None if group is None else group.is_frozen()
            if paused is not None:
                return State(running=True, pid=process.pid, paused=paused)
        try:
            found = self.inspect()
        except UnavailableError:
            if process is None:
                raise
            noted = ending.read(self.record.directory)  # its init is dead, even though the engine cannot be asked
            return State(running=False, exit_code=None if noted is None else noted.code)
        if found is None or found["State"]["Status"] == "created":
            return State(running=False)
        state = found["State"]
        if not state["Running"]:
            return State(running=False, exit_code=state["ExitCode"])
        return State(running=True, pid=self._pid(found), paused=state["Paused"])

    @property
    def _container(self) -> str:
        """The container's id from the record, or a text that is not the id of any container."""
        handle = self.record.read_handle(Handle)
        return (handle and handle.container) or "no container"

    def _group(self, found: dict[str, Any] | None) -> cgroup.ContainerGroup | None:
        """Return its control group; None if it does not run."""
        pid = self._pid(found)
        return None if found is None or pid is None else cgroup.find(found["Id"], pid)

    def limits(self) -> Limits:
        """Return the limits that the kernel enforces, after comparing them with the engine's description.

        Raises:
            LimitError: the two differ.
            EngineError: they cannot be read.
        """
        found = self.inspect()
        if found is None:
            raise EngineError(f"the container {self.name} is gone")
        pid = self._pid(found)
        return usage.in_force(found, self._group(found), pid if self.kernel_shared else None)

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        return relay.collect(self._run(argv, root=root, has_input=False), argv, timeout)

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
        return relay.Relay(
            self._run(argv, root=root, has_input=stdin is not None, terminal=terminal, env=env, workdir=workdir),
            stdin=stdin,
            stdout=relay.to_descriptor(stdout),
            stderr=relay.to_descriptor(stderr),
            terminal=terminal is not None,
        )

    def _run(self, argv: Sequence[str], *, root: bool, **more: Any) -> commands.ContainerBackend:
        ident = 0 if root else SANDBOX_UID
        return commands.start(
            self.engine,
            self.name,
            argv,
            user=f"{ident}:{ident}",
            alive=self.alive,
            kernel_shared=self.kernel_shared,
            **more,
        )

    def resources(self) -> dict[str, Any]:
        handle = self.record.read_handle(Handle)
        return {"engine": str(self.engine), "container": (handle and handle.container) or self.name}

    def inspection(self) -> Inspection:
        from sandbox.isolation.docker import inspection  # no start pays for the form

        found = self.inspect()
        if found is None:
            raise EngineError(f"the container {self.name} is gone")
        pid = self._pid(found)
        return inspection.inspect(self.record, found, self._view(pid), pid, self._group(found), self.limits())

    def _view(self, pid: int | None) -> View:
        """Return a view of its init through the kernel that serves it; `pid` is the process on this host."""
        from sandbox.isolation.inspection import host_view

        return host_view(pid)

    def kill(self, number: int) -> None:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        if number in _KEPT_BY_INIT:
            raise EngineError(f"the sandbox's init does not forward {name} to the workload", "use pause, or SIGKILL")
        found = self.inspect()
        if found is None or not found["State"]["Running"]:
            raise EngineError(f"{self.record.name} is not running")
        if found["State"]["Paused"]:
            self._kill_paused(number, name, found)
        elif not self._signal(name):
            raise EngineError(f"{self.record.name} is not running")

    def _kill_paused(self, number: int, name: str, found: dict[str, Any]) -> None:
        """Send a signal to a paused container; all but SIGKILL bypass dockerd, which would unpause it."""
        if number == signal.SIGKILL:
            self._signal(name)
            return
        pid = self._pid(found)
        if pid is None or not self.kernel_shared:
            raise EngineError(f"{self.record.name} is paused", f"run `sandbox unpause {self.record.name}` first")
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def pause(self) -> None:
        try:
            with self.engine.talking("the container could not be paused") as api:
                api.pause(self.name)
        except RefusalError:
            if not self._paused():
                raise

    def unpause(self) -> None:
        try:
            with self.engine.talking("the container could not be unpaused") as api:
                api.unpause(self.name)
        except RefusalError:
            if self._paused():
                raise

    def _paused(self) -> bool:
        """Return whether the engine has paused it.

        Raises:
            EngineError: it does not run.
        """
        found = self.inspect()
        if found is None or not found["State"]["Running"]:
            raise EngineError(f"{self.record.name} is not running")
        return bool(found["State"]["Paused"])

    def stats(self) -> Stats:
        process = self.record.process
        if process is not None and process.alive():
            group = cgroup.find(self._container, process.pid)
            if group is not None:
                return usage.usage(group, process.pid)
        found = self.inspect()
        pid, group = self._pid(found), self._group(found)
        if pid is not None and group is not None:
            return usage.usage(group, pid)
        return Stats(None, None, None)

    def events(self) -> dict[str, int]:
        """Return the control group's counters of limits hit; empty if it cannot be seen."""
        group = self._group(self.inspect())
        return {} if group is None else group.events()

    def stop(self, grace: float) -> int | None:
        if self.state().paused:
            self.unpause()  # a paused workload could not handle SIGTERM
        if not self._signal("SIGTERM"):
            return self.state().exit_code
        try:
            return self.wait(grace)
        except TimeoutError:
            self._signal("SIGKILL")
            try:
                return self.wait(_REMOVAL_TIMEOUT)
            except TimeoutError as error:
                raise EngineError(f"the container {self.name} does not die") from error

    def _signal(self, name: str) -> bool:
        """Send a signal to the init; return False if the container does not run."""
        try:
            with self.engine.talking(f"{name} could not be sent") as api:
                api.kill(self.name, name)
        except RefusalError as error:
            if error.status in (_GONE, _CONFLICT):  # 409: it is not running
                return False
            raise
        return True

    def wait(self, timeout: float | None = None) -> int | None:
        state = self.state()
        if not state.running:
            code = state.exit_code
        else:
            limit: Any = None if timeout is None else max(timeout, 0.001)  # typed as int, but a float works
            try:
                with self.engine.talking("the container's end cannot be waited for") as api:
                    code = int(api.wait(self.name, timeout=limit, condition="not-running")["StatusCode"])
            except NoAnswerError:
                raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s") from None
            except RefusalError as error:
                if error.status != _GONE:
                    raise
                code = None
        noted = ending.wait(self.record.directory)  # after this, the log is complete too
        return noted.code if code is None and noted is not None else code

    def remove(self) -> None:
        self.inspect()  # fails if the engine does not answer, before the keeper is told anything
        # Before the workload ends: the keeper must not record the end of a sandbox that is being removed.
        supervision.silence(self.record.directory)
        deadline = time.monotonic() + _LATE_CREATION
        while not remove(self.engine, self.name, self.name) and self.uncertain and time.monotonic() < deadline:
            time.sleep(0.05)
        reached(Failpoint.CONTAINER_REMOVED)
        try:
            supervision.wait_gone(self.record.directory)
        except TimeoutError as error:
            raise EngineError(str(error)) from error
        if self.keeper is not None:
            self.keeper.close()


def remove(engine: Engine, container: str, name: str) -> bool:
    """Kill and remove a container with its anonymous volumes; return False if it does not exist.

    Raises:
        EngineError: it could not be removed.
    """
    deadline = time.monotonic() + _REMOVAL_TIMEOUT
    asked = False
    while True:
        try:
            with engine.talking(f"the container {name} could not be removed") as api:
                api.remove_container(container, force=True, v=True)
        except RefusalError as error:
            if error.status == _GONE:
                return asked
            # 409: another removal is in progress. 500: a mount is still busy for a moment.
            if error.status not in (_CONFLICT, _FAILED) or time.monotonic() > deadline:
                raise
            asked = True
            time.sleep(0.05)
        else:
            return True
