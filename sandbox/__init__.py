"""Run the same server at every isolation level, and measure what each level costs and what it stops.

This module is the Python interface: `run`, `get`, `list`, the class `Sandbox` that they return, and the errors. Each
name is imported on first use, so that `import sandbox` is fast.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
"""As in `typing`, whose import takes longer than all of this module."""
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


if not TYPE_CHECKING:  # a type checker would assume that any name exists

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module("sandbox.api" if name in _INTERFACE else "sandbox.errors")
        value = globals()[name] = getattr(module, name)
        return value


def __dir__() -> tuple[str, ...]:
    """Return the public names, imported or not."""
    return tuple(__all__)
