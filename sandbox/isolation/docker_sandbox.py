"""One Docker container as a sandbox, under the default runtime or under gVisor's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sandbox.errors import EngineError, LimitError
from sandbox.isolation import docker_cgroup, docker_stream
from sandbox.isolation.base import ExecResult, Sandbox, State, Stats
from sandbox.isolation.docker_client import Engine, NoAnswerError, RefusalError
from sandbox.processid import ProcessId
from sandbox.record import Record
from sandbox.spec import SANDBOX_UID, Limits

NAME_PREFIX = "sbx-"
NANO = 1_000_000_000
"""Docker counts CPUs and CPU time in billionths."""

_GONE = 404
_CONFLICT = 409
_FAILED = 500
_REMOVAL_TIMEOUT = 30.0
"""Seconds in which a removal that the engine has begun must be done."""
_LATE_CREATION = 1.0
"""Seconds in which a container may still appear whose create call got no answer."""


class ContainerSandbox(Sandbox):
    """One container.

    Attributes:
        uncertain: a create call got no answer, so the container may exist or still appear.
    """

    def __init__(self, record: Record, engine: Engine) -> None:
        self.record = record
        self.engine = engine
        self.uncertain = False

    @property
    def name(self) -> str:
        """The container's name."""
        return NAME_PREFIX + self.record.id

    def boot(self, deadline: float) -> None:
        """Nothing to do by itself: the kernel is the host's, or comes up with the start (gVisor)."""

    def start(self) -> None:
        with self.engine.talking("the container could not be started") as api:
            api.start(self.name)
        # The workload is on its way; meanwhile note its process, by which later commands see whether it lives.
        pid = self.state().pid
        self.record.process = None if pid is None else ProcessId.of(pid)

    def inspect(self) -> dict[str, Any] | None:
        """The engine's description of it; None when it is gone.

        Raises:
            EngineError
        """
        try:
            with self.engine.talking("the container cannot be inspected") as api:
                found: dict[str, Any] = api.inspect_container(self.name)
        except RefusalError as error:
            if error.status == _GONE:
                return None
            raise
        return found

    def state(self) -> State:
        process = self.record.process
        if process is not None and process.alive():
            return State(running=True, pid=process.pid)  # known without the engine, and without the SDK's 0.1 s
        found = self.inspect()
        if found is None or found["State"]["Status"] == "created":
            return State(running=False)
        state = found["State"]
        if not state["Running"]:
            return State(running=False, exit_code=state["ExitCode"])
        return State(running=True, pid=state["Pid"] if self.engine.endpoint.local and state["Pid"] else None)

    def _group(self, found: dict[str, Any] | None) -> docker_cgroup.ContainerGroup | None:
        """Its control group, where the engine is on this host and the container runs."""
        if found is None or not self.engine.endpoint.local or not found["State"]["Pid"]:
            return None
        return docker_cgroup.find(found["Id"], found["State"]["Pid"])

    def limits(self) -> Limits:
        """As the kernel has them; compared with what the engine says. See the base class.

        Raises:
            LimitError: the two differ.
            EngineError: they cannot be read.
        """
        found = self.inspect()
        if found is None:
            raise EngineError(f"the container {self.name} is gone")
        config = found["HostConfig"]
        said = Limits(
            config["NanoCpus"] / NANO or None, config["Memory"] or None, config["PidsLimit"] or None, "docker inspect"
        )
        group = self._group(found)
        if group is None:
            return said
        try:
            read = Limits(*group.read_limits(), f"docker inspect, cgroup {group.where.mode}")
        except OSError as error:
            raise EngineError(f"the limits cannot be read: {error}") from error
        for what in ("cpus", "memory", "pids"):
            ours, theirs = getattr(read, what), getattr(said, what)
            # Quotas are whole microseconds per period, memory whole pages.
            if (ours is None) != (theirs is None) or not math.isclose(ours or 0, theirs or 0, rel_tol=0.01):
                raise LimitError(f"the limit {what} is {theirs} to dockerd, but {ours} in the container's cgroup")
        return read

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        ident = 0 if root else SANDBOX_UID
        return docker_stream.run(
            self.engine,
            self.name,
            argv,
            user=f"{ident}:{ident}",
            timeout=timeout,
            alive=lambda: self.state().running,
        )

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        return docker_stream.read_log(self.engine, self.name, follow=follow)

    def stats(self) -> Stats:
        process = self.record.process
        group = None
        if process is not None and process.alive():
            group = docker_cgroup.find(self.record.data["docker"]["container"], process.pid)
        if group is not None:
            return Stats(*group.usage())
        found = self.inspect()
        if found is None or not found["State"]["Running"]:
            return Stats(None, None, None)
        group = self._group(found)
        return Stats(*group.usage()) if group is not None else self._engine_stats()

    def _engine_stats(self) -> Stats:
        """Usage as an engine far away says it."""
        with self.engine.talking("the usage cannot be read") as api:
            found = api.stats(self.name, stream=False, one_shot=True)
        cpu = found.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        return Stats(
            None if cpu is None else cpu / NANO,
            found.get("memory_stats", {}).get("usage"),
            found.get("pids_stats", {}).get("current"),
        )

    def events(self) -> dict[str, int]:
        """The control group's counters of limits met; empty when it cannot be seen."""
        group = self._group(self.inspect())
        return {} if group is None else group.events()

    def stop(self, grace: float) -> int | None:
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
        """Send a signal to the init; False when nothing runs there."""
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
            return state.exit_code
        limit: Any = None if timeout is None else max(timeout, 0.001)  # the SDK's types say int; seconds may be parts
        try:
            with self.engine.talking("the container's end cannot be waited for") as api:
                return int(api.wait(self.name, timeout=limit, condition="not-running")["StatusCode"])
        except NoAnswerError:
            raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s") from None
        except RefusalError as error:
            if error.status == _GONE:
                return None
            raise

    def destroy(self) -> None:
        deadline = time.monotonic() + _LATE_CREATION
        while not remove(self.engine, self.name, self.name) and self.uncertain and time.monotonic() < deadline:
            time.sleep(0.05)


def remove(engine: Engine, container: str, name: str) -> bool:
    """Kill and remove a container with its anonymous volumes; False when there is none.

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
            # 409: somebody else's removal is under way. 500: a mount is still busy for a moment.
            if error.status not in (_CONFLICT, _FAILED) or time.monotonic() > deadline:
                raise
            asked = True
            time.sleep(0.05)
        else:
            return True


class GVisorSandbox(ContainerSandbox):
    """One container under runsc."""

    def limits(self) -> Limits:
        """CPU and memory of the control group around gVisor; processes as gVisor's kernel says it inside."""
        around = super().limits()
        if not self.state().running:
            return Limits(around.cpus, around.memory, None, around.source)
        # `ulimit -p` is RLIMIT_NPROC in dash(1); runsc of 2022 has no /proc/self/limits.
        found = self.exec(["/bin/sh", "-c", "ulimit -p"], timeout=30.0)
        text = found.stdout.decode("ascii", "replace").strip()
        if found.exit_code != 0 or not (text.isdigit() or text == "unlimited"):
            raise EngineError(f"the limit on processes cannot be read inside: {text or found.stderr!r}")
        pids = int(text) if text.isdigit() else None
        return Limits(around.cpus, around.memory, pids, f"{around.source}, RLIMIT_NPROC inside")

    def stats(self) -> Stats:
        """Usage of the sandbox with its kernel; how many processes it runs inside cannot be seen from the host."""
        found = super().stats()
        return Stats(found.cpu_seconds, found.memory, None)
