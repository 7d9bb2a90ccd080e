"""What every isolation level provides. A new level is one file that implements these two classes.

Every method is abstract: a do-nothing default would be a false success. Drivers do the work; the manager owns
order, timing, undo and state, so no driver looks at a clock to report a duration, or writes the record itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from sandbox.capability import Missing
from sandbox.record import Record
from sandbox.spec import Limits, SandboxSpec

INIT = ("/usr/bin/tini", "--")
"""Process 1 of every sandbox, from the root filesystem: it reaps orphans and forwards signals. It is prepended to
the spec's argv by the drivers."""

BASE_ENV = (
    ("HOME", "/tmp"),  # noqa: S108 - a path inside a sandbox
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
)
"""The environment inside, beside the spec's own entries."""

TMPFS_DIRS = {"/tmp": 0o1777, "/run": 0o755, "/var/tmp": 0o1777}  # noqa: S108 - paths inside a sandbox
TMPFS_BYTES = 64 * 1024 * 1024
"""The root filesystem is read-only; these are writable, each of this size. Directory to mode; /run is root's alone."""

Progress = Callable[[str], None]
"""Takes one short line that says what is being done; shown on a terminal, dropped in a pipe."""


@dataclass(frozen=True, slots=True)
class State:
    """What a sandbox is doing now, as observed.

    Attributes:
        running: whether the workload's init is alive.
        exit_code: as a shell would say it (128+n for a signal); None while running or when it cannot be known.
        pid: the host's pid of what carries it (the init, or QEMU); None when not running or not on this host.
    """

    running: bool
    exit_code: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command inside left: its exit code and its output, bytes as written."""

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
    """

    cpu_seconds: float | None
    memory: int | None
    pids: int | None


def environment(spec: SandboxSpec) -> dict[str, str]:
    """The whole environment of the workload, and of commands run beside it."""
    return dict(BASE_ENV) | dict(spec.env)


class Isolation(ABC):
    """A level. Instances hold no sandbox; they may hold a connection to an engine, made lazily."""

    name: ClassVar[str]
    shares_kernel: ClassVar[bool]
    own_network: ClassVar[bool] = True
    """Whether the sandbox has a network stack of its own; without one it serves on its lab address on the host."""

    @abstractmethod
    def missing(self) -> Sequence[Missing]:
        """What this host lacks for the level, each with reason and remedy. Never raises; quick."""

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
        goes into `record.data` (JSON types); the manager saves it.

        Raises:
            EngineError
        """

    @abstractmethod
    def adopt(self, record: Record) -> Sandbox:
        """The handle of a sandbox that another command made. Does not touch it; it may be half made or gone."""

    @abstractmethod
    def sweep(self, known: Collection[str], *, dry_run: bool) -> list[str]:
        """Remove what carries one of our ids that is not in `known`, even if the store was lost.

        Returns:
            One line per thing removed (or that would be), such as "container sbx-0123456789ab".
        """

    @abstractmethod
    def release(self) -> list[str]:
        """Remove what the level keeps for all its sandboxes together, such as Docker's network.

        Called when nobody uses the lab network any more. Idempotent.

        Returns:
            One line per thing removed.

        Raises:
            EngineError
        """


class Sandbox(ABC):
    """One sandbox at one level, from created to destroyed."""

    record: Record

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
        """What it is doing now; a sandbox that is gone is simply not running."""

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
    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        """Chunks of what the workload wrote to stdout and stderr; with `follow`, until it ends."""

    @abstractmethod
    def stats(self) -> Stats:
        """Usage now."""

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
    def destroy(self) -> None:
        """Remove everything it has. Idempotent, safe on a half-made one, and complete or it raises.

        Raises:
            EngineError: says what could not be removed.
        """
