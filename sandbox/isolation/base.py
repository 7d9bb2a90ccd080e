"""The interface of an isolation level. A new one is one package and one line in the table `sandbox.isolation.LEVELS`.

Every method is abstract: a do-nothing default would be a false success. Drivers do the work; `lifecycle` owns
order, timing, undo and state, so no driver looks at a clock to report a duration, or writes the record itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sandbox import host
from sandbox.host import Missing
from sandbox.spec import Limits, SandboxSpec
from sandbox.state.record import Record

if TYPE_CHECKING:
    from sandbox.isolation.in_force import Inspection
    from sandbox.isolation.log import Piece
    from sandbox.isolation.supervision import Keeper

INIT = ("/usr/bin/tini", "--")
"""Process 1 of every sandbox, from the root filesystem: it reaps orphans and forwards signals. It is prepended to
the spec's argv by the drivers."""

BASE_ENV = (
    ("HOME", "/tmp"),  # noqa: S108 - a path inside a sandbox
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
)
"""The environment inside, beside the spec's own entries."""

RUN_BYTES = 1024 * 1024
SHM_BYTES = 16 * 1024 * 1024


class Tmpfs(NamedTuple):
    """A directory in memory: path inside, bytes, mode of its root."""

    path: str
    size: int
    mode: int


def writable(spec: SandboxSpec) -> tuple[Tmpfs, ...]:
    """Return the writable directories, beside /dev/shm of SHM_BYTES: the root filesystem is read-only.

    /run is root's alone; /var/tmp is a link to /tmp in the root filesystem, so that one size holds for both.
    """
    return (Tmpfs("/tmp", spec.disk, 0o1777), Tmpfs("/run", RUN_BYTES, 0o755))  # noqa: S108 - paths inside a sandbox


Progress = Callable[[str], None]
"""Takes one short line that says what is being done; shown on a terminal, dropped in a pipe."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of a sandbox, as observed.

    Attributes:
        running: whether the workload's init is alive.
        exit_code: as a shell would say it (128+n for a signal); None while running or when it cannot be known.
        pid: the host's pid of what carries it (the init, or QEMU); None when not running or not on this host.
        paused: whether it is held still; a paused one is running too.
    """

    running: bool
    exit_code: int | None = None
    pid: int | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of a command inside: its exit code, and its output byte for byte."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Stats:
    """Usage now. None means that it cannot be observed at this level; it is never shown as 0.

    Attributes:
        cpu_seconds: CPU time used since the start.
        memory: bytes charged, as the level's accounting has it.
        pids: processes and threads.
        received, sent: bytes over its network interface, as the sandbox sees them.
        read, written: bytes from and to block devices.
    """

    cpu_seconds: float | None
    memory: int | None
    pids: int | None
    received: int | None = None
    sent: int | None = None
    read: int | None = None
    written: int | None = None


@dataclass(frozen=True, slots=True)
class WindowSize:
    """A terminal's size in characters."""

    rows: int
    columns: int


class Attached(ABC):
    """A command that runs inside with descriptors of ours as its input and output."""

    @abstractmethod
    def resize(self, size: WindowSize) -> None:
        """Tell the command's terminal its new size; nothing happens where it has none, or has ended."""

    @abstractmethod
    def wait(self) -> int:
        """Wait for the command's end and return its exit code, 128+n for a signal. All output has been passed on.

        Raises:
            EngineError: the sandbox ended first, or the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop passing bytes on, and end the command if it still runs. Idempotent."""


def environment(spec: SandboxSpec) -> dict[str, str]:
    """The whole environment of the workload, and of commands run beside it."""
    return dict(BASE_ENV) | dict(spec.env)


@dataclass(frozen=True, slots=True)
class Features:
    """The properties in which levels differ: code outside a level's package asks for these, never for its name.

    Attributes:
        shares_kernel: the workload runs on the host's kernel.
        own_network: the sandbox has a network stack of its own; without one it serves on its lab address on the host.
        machine: it is a virtual machine: the memory limit is its guest's, and its processors may be emulated.
        warm_by_pause: a warm start takes a sandbox that was started ahead and paused.
        requires: capabilities of the host (see `host.checks`) that it needs beside those that every level needs.
    """

    shares_kernel: bool
    own_network: bool = True
    machine: bool = False
    warm_by_pause: bool = False
    requires: tuple[str, ...] = ()


class Isolation(ABC):
    """A level. Instances hold no sandbox; they may hold a connection to an engine, made lazily."""

    name: ClassVar[str]
    features: ClassVar[Features]

    def missing(self) -> Sequence[Missing]:
        """Return what this host lacks for the level, each with reason and remedy. Never raises; quick."""
        return host.missing_for(self.features.requires)

    @abstractmethod
    def check(self, spec: SandboxSpec) -> None:
        """Refuse what the level cannot honour.

        Raises:
            SpecError: names the field and says why.
        """

    @abstractmethod
    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        """Make the image form, the network and the engine's connection ready. Idempotent; nothing per sandbox.

        Raises:
            UnavailableError, ImageError, EngineError
        """

    @abstractmethod
    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> Sandbox:
        """Make everything of the sandbox, without running the workload.

        Each resource is registered on `undo` right after it exists (or before, where making it can be
        interrupted half way). Everything made carries `record.id`. What later commands need to find it again
        goes into the record by `record.keep_handle`; the caller saves it.

        Raises:
            EngineError
        """

    @abstractmethod
    def adopt(self, record: Record) -> Sandbox:
        """The handle of a sandbox that another command made. Does not touch it; it may be half made or gone.

        Raises:
            StoreError: its record has no handle of this level's kind.
        """

    @abstractmethod
    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Remove what carries one of our ids that is not in `known`, even if the store was lost.

        Returns:
            One line per thing removed (or that would be), such as "container sbx-0123456789ab".
        """

    @abstractmethod
    def remove_shared(self) -> list[str]:
        """Remove what the level keeps for all its sandboxes together, such as Docker's network.

        Called when nobody uses the lab network any more. Idempotent.

        Returns:
            One line per thing removed.

        Raises:
            EngineError
        """


class Forking(ABC):
    """An optional ability of a level: it forks warm starts from a process that has the servers loaded, a zygote."""

    @abstractmethod
    def start_zygote(self, progress: Progress) -> None:
        """Start it, unless one of the current root filesystem runs.

        Raises:
            ImageError, EngineError
        """

    @abstractmethod
    def zygote(self, *, current: bool = False) -> int | None:
        """Its pid, None where none runs; with `current` only if it is of the current root filesystem."""

    @abstractmethod
    def stop_zygote(self) -> bool:
        """End it; sandboxes that it has made go on. Returns whether one ran.

        Raises:
            EngineError: it does not end.
        """


class Sandbox(ABC):
    """One sandbox at one level, from created to removed.

    Attributes:
        record: what is known of it.
        keeper: of the sandbox, where this handle has started it.
    """

    record: Record
    keeper: Keeper | None = None

    @abstractmethod
    def boot(self, deadline: float) -> None:
        """Bring up the sandbox's own kernel, until its init runs; returns at once where the kernel is shared.

        Args:
            deadline: a value of time.monotonic().

        Raises:
            EngineError, NotReadyError
        """

    @abstractmethod
    def start(self) -> None:
        """Start the workload, and return as soon as its first instruction is on its way.

        Raises:
            EngineError, CannotInvokeError, CommandNotFoundError
        """

    @abstractmethod
    def state(self) -> State:
        """Return its state now; a sandbox that is gone is not running."""

    @abstractmethod
    def limits(self) -> Limits:
        """The limits in force, read back from what enforces them.

        Raises:
            EngineError: they cannot be read.
        """

    @abstractmethod
    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        """Run a command inside, behind the same walls and limits, and wait for it.

        Args:
            argv: the command; argv[0] is looked up on the sandbox's PATH.
            timeout: seconds; None waits for ever.
            root: run as the sandbox's root user in place of SANDBOX_UID (with no capability added).

        Raises:
            EngineError, CommandNotFoundError, CannotInvokeError, TimeoutError
        """

    @abstractmethod
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
        """Run a command inside as `exec` does, with its input and output passed on as they come.

        Args:
            argv: the command.
            stdin: a descriptor to read its input from; None gives it an empty one. At its end the command's is closed.
            stdout: a descriptor for its output.
            stderr: a descriptor for its errors; unused with a terminal, which has one stream.
            terminal: give it a terminal of this size of its own (a fresh one inside, where the level has terminals
                inside); the caller has put the user's into raw mode. Bytes of `stdin` go to it as typed, so that a
                Ctrl-C typed reaches the command as SIGINT from its own terminal.
            root: as for `exec`.
            env: entries added to the sandbox's environment.
            workdir: absolute path; None for the spec's.

        Raises:
            EngineError, CommandNotFoundError, CannotInvokeError
        """

    def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[bytes]:
        """The bytes of `pieces`."""
        return (piece.data for piece in self.pieces(follow=follow, tail=tail, since=since, until=until))

    def pieces(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
        dropped: Callable[[int], object] = lambda _count: None,
    ) -> Iterator[Piece]:
        """Yield what the workload wrote to stdout and stderr, as `log.read` has it; with `follow`, until it ends.

        Args:
            follow: go on until the workload ends.
            tail: begin with the last so many lines.
            since: leave out what was written before this time, in seconds since the epoch.
            until: leave out what was written after it.
            dropped: told how many bytes the log does not have any more.

        Raises:
            EngineError
        """
        from sandbox.isolation import log, supervision  # no start reads a log, supervision

        directory = self.record.directory
        return log.read(
            directory,
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            running=lambda: supervision.watching(directory),
            dropped=dropped,
        )

    def output(self, dropped: Callable[[int], object] = lambda _count: None) -> Iterator[Piece]:
        """Yield what the workload writes, from its first byte to its end: for the command in the foreground.

        Where this handle has started the sandbox (and nobody called `keeper.let_go`), a slow reader slows the workload
        and loses nothing.

        Args:
            dropped: told how many bytes the log had no room for.
        """
        return self.pieces(follow=True, dropped=dropped) if self.keeper is None else self.keeper.output(dropped)

    @abstractmethod
    def stats(self) -> Stats:
        """Usage now."""

    @abstractmethod
    def resources(self) -> dict[str, Any]:
        """Return what the level has of it on this host, by name: control groups, container, domain. JSON types."""

    @abstractmethod
    def inspection(self) -> Inspection:
        """Return what is in force, read from what enforces it; for a sandbox that does not run, what can still be read.

        Raises:
            EngineError
        """

    @abstractmethod
    def kill(self, number: int) -> None:
        """Send a signal to the workload (by way of its init, which passes it on; SIGKILL ends the sandbox at once).

        Raises:
            EngineError: it is not running, or the level cannot deliver this signal.
        """

    @abstractmethod
    def pause(self) -> None:
        """Hold every process of it still, until `unpause`. Idempotent.

        Raises:
            EngineError: it is not running, or the level cannot.
        """

    @abstractmethod
    def unpause(self) -> None:
        """Let it go on. Idempotent.

        Raises:
            EngineError
        """

    @abstractmethod
    def stop(self, grace: float) -> int | None:
        """SIGTERM to the workload, SIGKILL after `grace` seconds; returns its exit code if it can be known.

        Raises:
            EngineError
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the workload's end and return its exit code, None if it cannot be known.

        Raises:
            TimeoutError
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove everything it has. Idempotent, safe on a half-made one, and complete or it raises.

        Raises:
            EngineError: says what could not be removed.
        """


class Batched(ABC):
    """An optional ability of a sandbox: much of its removal is waiting that many can do at once.

    Both steps are begun here for all, one step after the other, before each is removed by `Sandbox.remove`, which
    does what is left to do, and says what cannot be done.
    """

    @abstractmethod
    def kill_soon(self) -> None:
        """Send SIGKILL to all its processes, and wait for none of them."""

    @abstractmethod
    def remove_soon(self) -> None:
        """Remove what can be removed by now of what held the processes."""
