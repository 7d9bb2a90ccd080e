"""The Python interface, for programs; it offers what the command line does. docs/api.md is its reference.

import sandbox

with sandbox.run("reactor", isolation="namespace", memory="128m", env={"A": "1"}) as box:
    print(box.url, box.exec(["id", "-u"]).stdout)
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from sandbox.isolation import DEFAULT
from sandbox.lifecycle import find, kill, pause, remove, stop, wait
from sandbox.lifecycle import run as running
from sandbox.lifecycle.find import Running
from sandbox.lifecycle.start import silent
from sandbox.request import resolve
from sandbox.spec import GRACE, Publish, SandboxSpec

if TYPE_CHECKING:
    from sandbox.isolation.base import ExecResult, Progress, State, Stats
    from sandbox.isolation.in_force import Inspection
    from sandbox.isolation.log import Piece


class Sandbox:
    """A sandbox that runs or has run, as returned by `run`, `get` and `list`.

    Used as a context manager, it is removed at the end of the block, also after an exception.
    """

    def __init__(self, running: Running) -> None:
        self._running = running

    def __repr__(self) -> str:
        return f"<sandbox {self.name} ({self.isolation}, {self.id})>"

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove(force=True)

    @property
    def id(self) -> str:
        """Its id, 12 hex digits."""
        return self._running.record.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def isolation(self) -> str:
        """Its isolation level."""
        return self.spec.isolation

    @property
    def spec(self) -> SandboxSpec:
        """The spec: all requested settings."""
        return self._running.record.spec

    @property
    def address(self) -> str:
        """Its address on the lab network, which this host can reach, in dotted-quad notation."""
        return self._running.record.address

    @property
    def url(self) -> str | None:
        """The URL at which it serves; None without a known port."""
        return self._running.url

    @property
    def published(self) -> tuple[Publish, ...]:
        """The ports of the host's 127.0.0.1 that are forwarded to ports inside."""
        return self.spec.publish

    @property
    def startup(self) -> dict[str, float]:
        """The duration of each phase of its start, in seconds."""
        return self._running.record.timeline.durations()

    @property
    def state(self) -> State:
        """Its current state: `running`, `exit_code`, `pid`, `paused`."""
        return self._running.sandbox.state()

    @property
    def running(self) -> bool:
        """True while its workload runs."""
        return self.state.running

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        """Run a command inside, under the same isolation and limits, and wait for it.

        Args:
            argv: the command; its first part is looked up on the sandbox's PATH.
            timeout: in seconds; None waits for ever.
            root: run as the sandbox's root user instead of its ordinary one.

        Returns:
            Its `exit_code`, `stdout` and `stderr`, the latter two as bytes.

        Raises:
            EngineError, CommandNotFoundError, CannotInvokeError, TimeoutError
        """
        if isinstance(argv, str):
            raise TypeError("argv must be a list of strings, such as ['ls', '-l']")
        return self._running.sandbox.exec(argv, timeout=timeout, root=root)

    def logs(self, *, tail: int | None = None, since: float | None = None, until: float | None = None) -> bytes:
        """Return the workload's output to stdout and stderr until now.

        Args:
            tail: only the last `tail` lines.
            since: only what was written after this time, in seconds since the epoch.
            until: only what was written before this time.

        Raises:
            EngineError
        """
        return b"".join(self._running.sandbox.logs(tail=tail, since=since, until=until))

    def pieces(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[Piece]:
        """Yield the workload's output, with the `stream` (1 or 2) and the `time` of each piece of `data`.

        Args:
            follow: wait for more output until the workload ends.
            tail: as for `logs`.
            since: as for `logs`.
            until: as for `logs`.

        Raises:
            EngineError
        """
        return self._running.sandbox.pieces(follow=follow, tail=tail, since=since, until=until)

    def follow(self) -> Iterator[bytes]:
        """Yield the workload's output in chunks, from the beginning until it ends.

        Raises:
            EngineError
        """
        return self._running.sandbox.logs(follow=True)

    def stats(self) -> Stats:
        """Return the current resource usage; a field is None if the level cannot observe it."""
        return self._running.sandbox.stats()

    def inspect(self) -> Inspection:
        """Return the settings in force, such as limits, user and capabilities, read from what enforces them.

        Its method `to_json` returns JSON types.

        Raises:
            EngineError
        """
        return self._running.sandbox.inspection()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the workload's end and return its exit code, None if unknown.

        Args:
            timeout: in seconds; None waits for ever.

        Raises:
            TimeoutError
        """
        return wait.wait(self._running, timeout)

    def stop(self, grace: float = GRACE) -> int | None:
        """Stop the workload by SIGTERM, and by SIGKILL after `grace` seconds. The sandbox and its log are kept.

        Returns:
            The exit code, None if unknown.

        Raises:
            NotFoundError, BusyError, EngineError
        """
        return stop.stop(self._running, grace)

    def kill(self, number: int) -> None:
        """Send a signal to the workload.

        Raises:
            NotFoundError, EngineError
        """
        kill.kill(self._running, number)

    def pause(self) -> None:
        """Stop all its processes until `unpause`.

        Raises:
            NotFoundError, EngineError
        """
        pause.pause(self._running)

    def unpause(self) -> None:
        """Resume a paused sandbox.

        Raises:
            NotFoundError, EngineError
        """
        pause.unpause(self._running)

    def remove(self, *, force: bool = False) -> None:
        """Remove the sandbox and all its resources; a running one only with `force`. Idempotent.

        Raises:
            BusyError, EngineError
        """
        remove.remove(self._running, force=force)


def run(
    target: resolve.Target,
    *,
    isolation: str = DEFAULT,
    name: str | None = None,
    cpus: str | float | None = None,
    memory: str | int | None = None,
    disk: str | int | None = None,
    pids_limit: int | None = None,
    cpuset: str | None = None,
    env: Mapping[str, str] | Iterable[str] = (),
    port: int | None = None,
    ready_path: str | None = None,
    volumes: Iterable[str] = (),
    publish: Mapping[int, int] | Iterable[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    detach: bool = False,
    warm: bool = False,
    progress: Progress | None = None,
) -> Sandbox:
    """Start a sandbox, and return once it has served a correct reply, or at once if it has no known port.

    Args:
        target: the name of a workload; a command as a list; or a directory with a `sandbox.toml`, as a Path or as a
            string that contains a slash.
        isolation: the level: process, namespace, container, gvisor or vm.
        name: of the sandbox; generated by default.
        cpus: CPU time per second, such as 0.5.
        memory: in bytes, or a string such as "128m".
        disk: the size of /tmp, in bytes, or a string such as "64m".
        pids_limit: the most processes and threads together.
        cpuset: CPUs that it may use, such as "0-1".
        env: environment variables, as a mapping or as strings NAME=VALUE.
        port: TCP port that a command listens on; without one, no reply is awaited.
        ready_path: HTTP path that returns status 200 once the workload is ready.
        volumes: bind mounts, as strings HOST:CTR[:ro].
        publish: ports of 127.0.0.1 to forward to ports inside: {8000: 80}, or strings HOST:CTR.
        workdir: the working directory, an absolute path inside.
        detach: let the sandbox outlive this process; otherwise `prune` removes it once this process has ended.
        warm: use a start that `sandbox warm` has prepared, see docs/warm.md.
        progress: called with one short line per step.

    Raises:
        SandboxError: the start failed; nothing is left behind.
    """
    values = {
        "name": name,
        "cpus": cpus,
        "memory": memory,
        "disk": disk,
        "pids_limit": pids_limit,
        "cpuset": cpuset,
        "env": env,
        "port": port,
        "ready_path": ready_path,
        "volumes": volumes,
        "publish": publish,
        "workdir": None if workdir is None else os.fspath(workdir),
    }
    wanted = resolve.make(target, isolation, resolve.options_of(values))
    return Sandbox(
        running.run(
            wanted.spec,
            application=wanted.application,
            progress=progress or silent,
            owner=not detach,
            warm=warm,
        )
    )


def get(reference: str) -> Sandbox:
    """Return a sandbox by its name, its id or the beginning of its id, also one that another process started.

    Raises:
        NotFoundError, StoreError
    """
    return Sandbox(find.get(reference))


def list() -> builtins.list[Sandbox]:
    """Return all sandboxes of this host, running or ended, oldest first."""
    return [Sandbox(running) for running in find.everything()]
