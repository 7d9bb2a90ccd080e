"""The Python interface: what the command line does, for programs. docs/api.md is its reference.

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
    """A sandbox that runs, or has run. Made by `run`, `get` and `list`.

    As a context manager it is removed at the block's end, whatever happened inside.
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
        """Its level."""
        return self.spec.isolation

    @property
    def spec(self) -> SandboxSpec:
        """The spec: everything that was asked for."""
        return self._running.record.spec

    @property
    def address(self) -> str:
        """Its address on the lab network, which this host can reach; a dotted quad."""
        return self._running.record.address

    @property
    def url(self) -> str | None:
        """The URL at which it serves; None where no port is known."""
        return self._running.url

    @property
    def published(self) -> tuple[Publish, ...]:
        """Ports of the host's 127.0.0.1 that were asked to lead inside."""
        return self.spec.publish

    @property
    def startup(self) -> dict[str, float]:
        """Seconds that each phase of its start took."""
        return self._running.record.timeline.durations()

    @property
    def state(self) -> State:
        """Its state now, as observed: `running`, `exit_code`, `pid`, `paused`."""
        return self._running.sandbox.state()

    @property
    def running(self) -> bool:
        """True while its workload runs."""
        return self.state.running

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        """Run a command inside, behind the same walls and limits, and wait for it.

        Args:
            argv: the command; its first part is looked up on the sandbox's PATH.
            timeout: seconds; None waits for ever.
            root: as the sandbox's root user in place of its ordinary one.

        Returns:
            Its `exit_code`, `stdout` and `stderr`, the latter two as bytes.

        Raises:
            EngineError, CommandNotFoundError, CannotInvokeError, TimeoutError
        """
        if isinstance(argv, str):
            raise TypeError("argv is a list of texts, such as ['ls', '-l']")
        return self._running.sandbox.exec(argv, timeout=timeout, root=root)

    def logs(self, *, tail: int | None = None, since: float | None = None, until: float | None = None) -> bytes:
        """Return what the workload wrote to stdout and stderr until now.

        Args:
            tail: the last so many lines only.
            since: what was written after this time only, in seconds since the epoch.
            until: what was written before this time only.

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
        """Yield what the workload wrote, with the `stream` (1 or 2) and the `time` of each piece of `data`.

        Args:
            follow: go on until it ends.
            tail: as for `logs`.
            since: as for `logs`.
            until: as for `logs`.

        Raises:
            EngineError
        """
        return self._running.sandbox.pieces(follow=follow, tail=tail, since=since, until=until)

    def follow(self) -> Iterator[bytes]:
        """Chunks of what the workload writes, from the beginning until it ends.

        Raises:
            EngineError
        """
        return self._running.sandbox.logs(follow=True)

    def stats(self) -> Stats:
        """Usage now; None in a field is what cannot be observed at this level."""
        return self._running.sandbox.stats()

    def inspect(self) -> Inspection:
        """Return what is in force, read from what enforces it: limits, user, capabilities and so on.

        Its `to_json` gives JSON types.

        Raises:
            EngineError
        """
        return self._running.sandbox.inspection()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the workload's end. Returns its exit code, None if it cannot be known.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError
        """
        return wait.wait(self._running, timeout)

    def stop(self, grace: float = GRACE) -> int | None:
        """End the workload: SIGTERM, and SIGKILL after `grace` seconds. The sandbox stays, with its log.

        Returns:
            The exit code, None if it cannot be known.

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
        """Hold every process of it still, until `unpause`.

        Raises:
            NotFoundError, EngineError
        """
        pause.pause(self._running)

    def unpause(self) -> None:
        """Let it go on.

        Raises:
            NotFoundError, EngineError
        """
        pause.unpause(self._running)

    def remove(self, *, force: bool = False) -> None:
        """Remove everything of it; a running one only with `force`. One that is gone already is fine.

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
    """Start a sandbox, and return once it served a correct reply, where a port is known of it.

    Args:
        target: the name of a workload; a command as a list; or a directory with a `sandbox.toml`, as a path or as text
            with a slash in it.
        isolation: process, namespace, container, gvisor or vm.
        name: of the sandbox; made up where none is given.
        cpus: CPU time per second, such as 0.5.
        memory: bytes, or text such as "128m".
        disk: what it may write below /tmp: bytes, or text such as "64m".
        pids_limit: processes and threads together.
        cpuset: CPUs that it may use, such as "0-1".
        env: environment, as a mapping or as NAME=VALUE texts.
        port: TCP port that a command listens on; without one no reply is awaited.
        ready_path: HTTP path that answers 200 once it serves.
        volumes: HOST:CTR[:ro] each.
        publish: ports of 127.0.0.1 that lead inside: {8000: 80}, or HOST:CTR each.
        workdir: absolute path inside that the command starts in.
        detach: let it outlive this process; otherwise it is removed by `prune` at the latest once this process is gone.
        warm: start from what `sandbox warm` has prepared, see docs/warm.md; nothing is prepared here.
        progress: told in short lines what is being done.

    Raises:
        SandboxError: of the kind that fits; nothing is left then.
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
    """A sandbox by name, id or the beginning of an id, whoever started it.

    Raises:
        NotFoundError, StoreError
    """
    return Sandbox(find.get(reference))


def list() -> builtins.list[Sandbox]:
    """Every sandbox of this host, running or ended, oldest first."""
    return [Sandbox(running) for running in find.everything()]
