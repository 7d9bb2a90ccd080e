"""What can go wrong, each with an exit code and, where there is one, a remedy.

Exit codes follow docker-run(1): 125 our own error, 126 the command cannot be invoked, 127 it is not found,
otherwise the child's own code, or 128+n when signal n ended it.
"""

from __future__ import annotations

EXIT_ERROR = 125
EXIT_CANNOT_INVOKE = 126
EXIT_NOT_FOUND = 127


class SandboxError(Exception):
    """The base of every error that a user is shown: one line, and perhaps a hint what would be right.

    Attributes:
        message: one line, without a full stop, that says what was wrong.
        hint: what would be right or what mends it; None where nothing is known.
        exit_code: what the command line exits with.
    """

    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SpecError(SandboxError):
    """A field of the request is wrong, or a level cannot honour it."""


class NotFoundError(SandboxError):
    """No such sandbox, workload, image or level."""


class NameTakenError(SandboxError):
    """A sandbox of that name exists."""


class UnavailableError(SandboxError):
    """This host cannot do the level asked for; the hint is the remedy."""


class NotReadyError(SandboxError):
    """The workload did not give a correct reply in time, or died before it did.

    Attributes:
        output: the end of what it wrote, bytes as text; empty where it wrote nothing.
    """

    def __init__(self, message: str, hint: str | None = None, output: str = "") -> None:
        super().__init__(message, hint)
        self.output = output


class LimitError(SandboxError):
    """A limit was set but reads back differently."""


class EngineError(SandboxError):
    """dockerd, libvirtd, QEMU or the kernel refused; the message carries its words."""


class ImageError(SandboxError):
    """A root filesystem could not be built, or what is on disk is not what was built."""


class StoreError(SandboxError):
    """The state directory cannot be read or written, or a record in it is not one of ours."""


class NewerRecordError(StoreError):
    """A newer version of sandbox wrote the record: it is neither read nor removed by this one."""


class BusyError(SandboxError):
    """Another command is working on the same sandbox."""


class CannotInvokeError(SandboxError):
    """The command inside exists but cannot be executed."""

    exit_code = EXIT_CANNOT_INVOKE


class CommandNotFoundError(SandboxError):
    """The command inside does not exist."""

    exit_code = EXIT_NOT_FOUND
