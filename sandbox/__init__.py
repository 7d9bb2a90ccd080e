"""Runs the same server behind every kind of wall, and measures what each wall costs and what it stops.

The Python interface is here: `run`, `get`, `list`, the class `Sandbox` that they return, and the errors. What stands
behind a name is imported when it is first asked for, so that `import sandbox` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
"""As `typing` has it, whose import takes longer than all of this module."""
if TYPE_CHECKING:
    from sandbox.api import Sandbox, get, list, run
    from sandbox.errors import (
        BusyError,
        CannotInvokeError,
        CommandNotFoundError,
        EngineError,
        ImageError,
        LimitError,
        NameTakenError,
        NotFoundError,
        NotReadyError,
        SandboxError,
        SpecError,
        StoreError,
        UnavailableError,
    )

__version__ = "0.1.0"

__all__ = [
    "BusyError",
    "CannotInvokeError",
    "CommandNotFoundError",
    "EngineError",
    "ImageError",
    "LimitError",
    "NameTakenError",
    "NotFoundError",
    "NotReadyError",
    "Sandbox",
    "SandboxError",
    "SpecError",
    "StoreError",
    "UnavailableError",
    "__version__",
    "get",
    "list",
    "run",
]
_INTERFACE = ("Sandbox", "get", "list", "run")


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        """Import what a public name stands for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module("sandbox.api" if name in _INTERFACE else "sandbox.errors")
        value = globals()[name] = getattr(module, name)
        return value


def __dir__() -> tuple[str, ...]:
    """The public names, whether they were imported or not."""
    return tuple(__all__)
