"""The errors that users are shown, each with an exit code and perhaps a hint at the remedy.

Exit codes follow docker-run(1): 125 for an error of sandbox itself, 126 if the command cannot be invoked, 127 if it is
not found, otherwise the command's own code, or 128+n if signal n ended it.
"""

from __future__ import annotations

EXIT_ERROR = 125
EXIT_CANNOT_INVOKE = 126
EXIT_NOT_FOUND = 127


class SandboxError(Exception):
    """The base of all errors that a user is shown: one line, and perhaps a hint.

    Attributes:
        message: one line, without a full stop, that says what was wrong.
        hint: what would be right, or how to fix it; None if that is not known.
        exit_code: exit code of the command line.
    """

    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SpecError(SandboxError):
    """An option or argument is wrong, or the level does not support it."""


class NotFoundError(SandboxError):
    """The sandbox, workload, image or level does not exist."""


class NameTakenError(SandboxError):
    """The name is taken by another sandbox."""


class UnavailableError(SandboxError):
    """The level, or something else that was asked for, is not available on this host; the hint is the remedy."""


class NotReadyError(SandboxError):
    """The workload gave no correct reply in time, or ended before it did.

    Attributes:
        output: the end of what it wrote, which the command line shows.
    """

    def __init__(self, message: str, hint: str | None = None, output: str = "") -> None:
        super().__init__(message, hint)
        self.output = output


class LimitError(SandboxError):
    """A limit was set, but reads back differently."""


class EngineError(SandboxError):
    """Docker, libvirt, QEMU or the kernel refused; the message says why."""


class ImageError(SandboxError):
    """A root filesystem could not be built, or was changed after it was built."""


class StoreError(SandboxError):
    """The state directory cannot be read or written, or a record in it is not valid."""


class NewerRecordError(StoreError):
    """The record was written by a newer version of sandbox; this version neither reads nor removes it."""


class BusyError(SandboxError):
    """The sandbox, or something else, is in use by another command or program."""


class CannotInvokeError(SandboxError):
    """The command inside exists, but cannot be executed."""

    exit_code = EXIT_CANNOT_INVOKE


class CommandNotFoundError(SandboxError):
    """The command inside does not exist."""

    exit_code = EXIT_NOT_FOUND
