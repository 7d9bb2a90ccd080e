"""The interface of an isolation level. A new one is one package and one line in the table `sandbox.isolation.LEVELS`.

Nearly every method is abstract, because a default that does nothing would report success falsely. Drivers do the work;
`lifecycle` owns order, timing, undo and state, so a driver measures no durations and does not save the record.
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
"""The init of every sandbox, from the root filesystem: it reaps orphans and forwards signals. Drivers prepend it to the
spec's argv."""

BASE_ENV = (
    ("HOME", "/tmp"),  # noqa: S108 - a path inside a sandbox
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
)
"""The environment inside, to which the spec's entries are added."""

RUN_BYTES = 1024 * 1024
SHM_BYTES = 16 * 1024 * 1024


class Tmpfs(NamedTuple):
    """A tmpfs inside the sandbox: its path, size in bytes, and the mode of its root directory."""

    path: str
    size: int
    mode: int


def writable(spec: SandboxSpec) -> tuple[Tmpfs, ...]:
    """Return the writable directories apart from /dev/shm (SHM_BYTES); the root filesystem is read-only.

    Only root can write to /run. In the root filesystem /var/tmp is a link to /tmp, so both share one size.
    """
    return (Tmpfs("/tmp", spec.disk, 0o1777), Tmpfs("/run", RUN_BYTES, 0o755))  # noqa: S108 - paths inside a sandbox


Progress = Callable[[str], None]
"""Called with one short line that describes the current step; shown on a terminal only."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of a sandbox, as observed.

    Attributes:
        running: whether the workload's init is alive.
        exit_code: in a shell's terms (128+n for a signal); None while running, or if it is not known.
        pid: the host's pid of the process that it runs in (the init, or QEMU); None if it does not run on this host.
        paused: whether its processes are stopped by `pause`; `running` is true as well then.
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
    """Current resource usage. None means that the level cannot observe it; it is never shown as 0.

    Attributes:
        cpu_seconds: CPU time used since the start.
        memory: bytes charged by the level's accounting.
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
    """A command that runs inside and is connected to descriptors of the caller."""

    @abstractmethod
    def resize(self, size: WindowSize) -> None:
        """Set the size of the command's terminal; does nothing without one, or if the command has ended."""

    @abstractmethod
    def wait(self) -> int:
        """Wait for the command's end and return its exit code, 128+n for a signal. All output has been passed on.

        Raises:
            EngineError: the sandbox ended first, or the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop copying bytes, and kill the command if it still runs. Idempotent."""


def environment(spec: SandboxSpec) -> dict[str, str]:
    """Return the complete environment of the workload, and of commands run beside it."""
    return dict(BASE_ENV) | dict(spec.env)


@dataclass(frozen=True, slots=True)
class Features:
    """The properties in which levels differ: code outside a level's package asks for these, never for its name.

    Attributes:
        shares_kernel: the workload runs on the host's kernel.
        own_network: the sandbox has its own network stack; otherwise it listens on its lab address on the host.
        machine: it is a virtual machine: the memory limit applies to its guest, and its processors may be emulated.
        warm_by_pause: a warm start uses a sandbox that was started ahead of time and paused.
        requires: host capabilities (see `host.checks`) that it needs, besides those that every level needs.
    """

    shares_kernel: bool
    own_network: bool = True
    machine: bool = False
    warm_by_pause: bool = False
    requires: tuple[str, ...] = ()


class Isolation(ABC):
    """The driver of a level. It holds no sandbox, but may hold a connection to an engine, opened on first use."""

    name: ClassVar[str]
    features: ClassVar[Features]

    def missing(self) -> Sequence[Missing]:
        """Return what the level needs and this host lacks, each with a reason and a remedy. Fast; never raises."""
        return host.missing_for(self.features.requires)

    @abstractmethod
    def check(self, spec: SandboxSpec) -> None:
        """Refuse a spec that the level cannot implement.

        Raises:
            SpecError: its message names the field and the reason.
        """

    @abstractmethod
    def prepare(self, spec: SandboxSpec, progress: Progress) -> None:
        """Prepare the image form, the network and the connection to the engine, once for all sandboxes. Idempotent.

        Raises:
            UnavailableError, ImageError, EngineError
        """

    @abstractmethod
    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> Sandbox:
        """Create all the sandbox's resources, without running the workload.

        Each resource is registered on `undo` as soon as it exists (or before, if its creation can be interrupted).
        The name of every resource contains `record.id`. What later commands need to find the sandbox again is put into
        the record by `record.keep_handle`; the caller saves the record.

        Raises:
            EngineError
        """

    @abstractmethod
    def adopt(self, record: Record) -> Sandbox:
        """Return a sandbox that another command created. Does not access it: it may be incomplete or gone.

        Raises:
            StoreError: its record has no handle of this level's type.
        """

    @abstractmethod
    def prune(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Remove resources that carry an id of ours that is not in `known`, even if the store was lost.

        Returns:
            One line per resource removed (or to be removed), such as "container sbx-0123456789ab".
        """

    @abstractmethod
    def remove_shared(self) -> list[str]:
        """Remove what all sandboxes of the level share, such as Docker's network.

        Called once no sandbox uses the lab network any more. Idempotent.

        Returns:
            One line per resource removed.

        Raises:
            EngineError
        """


class Forking(ABC):
    """A level that can fork warm starts from a zygote, a process that has the reference servers loaded."""

    @abstractmethod
    def start_zygote(self, progress: Progress) -> None:
        """Start the zygote, unless one of the current root filesystem is running.

        Raises:
            ImageError, EngineError
        """

    @abstractmethod
    def zygote(self, *, current: bool = False) -> int | None:
        """Return the zygote's pid; None if none runs, or with `current` if it is of an older root filesystem."""

    @abstractmethod
    def stop_zygote(self) -> bool:
        """Stop the zygote and return whether one was running. Sandboxes forked from it keep running.

        Raises:
            EngineError: it does not exit.
        """


class Sandbox(ABC):
    """One sandbox at one level, from its creation to its removal.

    Attributes:
        record: its stored description.
        keeper: its keeper, if this object started it.
    """

    record: Record
    keeper: Keeper | None = None

    @abstractmethod
    def boot(self, deadline: float) -> None:
        """Boot the sandbox's own kernel until its init runs; returns at once if the kernel is shared.

        Args:
            deadline: a value of time.monotonic().

        Raises:
            EngineError, NotReadyError
        """

    @abstractmethod
    def start(self) -> None:
        """Start the workload, and return as soon as it is about to execute.

        Raises:
            EngineError, CannotInvokeError, CommandNotFoundError
        """

    @abstractmethod
    def state(self) -> State:
        """Return its state now; a sandbox that is gone is not running."""

    @abstractmethod
    def limits(self) -> Limits:
        """Return the limits in force, read back from what enforces them.

        Raises:
            EngineError: they cannot be read.
        """

    @abstractmethod
    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        """Run a command inside, under the same isolation and limits, and wait for it.

        Args:
            argv: the command; argv[0] is looked up on the sandbox's PATH.
            timeout: in seconds; None waits for ever.
            root: run as the sandbox's root user instead of SANDBOX_UID, without additional capabilities.

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
        """Run a command inside as `exec` does, and copy its input and output as they arrive.

        Args:
            argv: the command.
            stdin: a descriptor to read its input from until end of file; None gives the command an empty input.
            stdout: a descriptor for its output.
            stderr: a descriptor for its error output; unused with a terminal, which has one stream.
            terminal: the size of a new terminal for the command, created inside if the level can; the caller has put
                the user's terminal into raw mode. Bytes of `stdin` are passed to it as typed, so that Ctrl-C reaches
                the command as SIGINT from its own terminal.
            root: as for `exec`.
            env: entries added to the sandbox's environment.
            workdir: an absolute path; None for the spec's.

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
        """Yield the bytes of `pieces`."""
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
        """Yield the workload's output to stdout and stderr from the log, see `log.read`.

        Args:
            follow: wait for more output until the workload ends.
            tail: begin with the last `tail` lines.
            since: leave out what was written before this time, in seconds since the epoch.
            until: leave out what was written after it.
            dropped: called with the number of bytes that are missing from the log.

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
        """Yield the workload's output, from its first byte to its end, for a command in the foreground.

        If this object started the sandbox (and `keeper.stop_following` was not called), a slow caller slows the
        workload down, and no output is lost.

        Args:
            dropped: called with the number of bytes that did not fit into the log.
        """
        return self.pieces(follow=True, dropped=dropped) if self.keeper is None else self.keeper.output(dropped)

    @abstractmethod
    def stats(self) -> Stats:
        """Return the current resource usage."""

    @abstractmethod
    def resources(self) -> dict[str, Any]:
        """Return its resources on this host by name, such as control groups or a container, in JSON types."""

    @abstractmethod
    def inspection(self) -> Inspection:
        """Return the settings in force, read from what enforces them; after the end, those that can still be read.

        Raises:
            EngineError
        """

    @abstractmethod
    def kill(self, number: int) -> None:
        """Send a signal to the workload through its init, which forwards it; SIGKILL ends the sandbox at once.

        Raises:
            EngineError: it is not running, or the level cannot deliver this signal.
        """

    @abstractmethod
    def pause(self) -> None:
        """Stop all its processes until `unpause`. Idempotent.

        Raises:
            EngineError: it is not running, or the level cannot pause it.
        """

    @abstractmethod
    def unpause(self) -> None:
        """Resume a paused sandbox. Idempotent.

        Raises:
            EngineError
        """

    @abstractmethod
    def stop(self, grace: float) -> int | None:
        """Send SIGTERM to the workload, and SIGKILL after `grace` seconds; return its exit code, None if unknown.

        Raises:
            EngineError
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the workload's end and return its exit code, None if unknown.

        Raises:
            TimeoutError
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove all its resources. Idempotent; an incomplete sandbox can be removed too.

        Raises:
            EngineError: its message says what could not be removed.
        """


class Batched(ABC):
    """A sandbox that can be removed together with others, because most of a removal is waiting.

    Each of the two steps is begun for all sandboxes. Then `Sandbox.remove` does the rest for each one, and reports what
    failed.
    """

    @abstractmethod
    def kill_soon(self) -> None:
        """Send SIGKILL to all its processes without waiting for them to end."""

    @abstractmethod
    def remove_soon(self) -> None:
        """Remove those of its control groups that are empty by now."""
