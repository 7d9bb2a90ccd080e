"""The isolation levels: a table of lazily imported drivers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sandbox.errors import NotFoundError

if TYPE_CHECKING:
    from sandbox.isolation.base import Isolation

LEVELS: dict[str, str] = {
    "process": "sandbox.isolation.local.driver:ProcessIsolation",
    "namespace": "sandbox.isolation.local.driver:NamespaceIsolation",
    "container": "sandbox.isolation.docker.driver:ContainerIsolation",
    "gvisor": "sandbox.isolation.docker.driver:GVisorIsolation",
    "vm": "sandbox.isolation.vm.driver:VmIsolation",
}
"""Level to `module:class`, from the weakest isolation to the strongest."""

DEFAULT = "namespace"
"""The level that is used unless another is named; it needs no daemon."""

_loaded: dict[str, Isolation] = {}


def driver(level: str) -> Isolation:
    """Return the driver of a level. The libraries of other levels' engines are not imported.

    Raises:
        NotFoundError: there is no such level.
    """
    if level not in LEVELS:
        raise NotFoundError(f"there is no isolation level {level!r}", "one of " + ", ".join(LEVELS))
    if level not in _loaded:
        module, _, name = LEVELS[level].partition(":")
        _loaded[level] = getattr(import_module(module), name)()
    return _loaded[level]


def requirements() -> dict[str, tuple[str, ...]]:
    """Return the host capabilities that each level requires, see `Features.requires`."""
    return {level: driver(level).features.requires for level in LEVELS}
