"""The driver: namespaces as of the level `namespace`, with features, needs and a handle of its own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from sandbox.isolation.local.driver import NamespaceIsolation, NamespaceSandbox
from sandbox.spec import SandboxSpec
from sandbox.state.record import Record
from tests.sixth import LEVEL


@dataclass(frozen=True, slots=True)
class Handle:
    """What finds a sandbox of this level again."""

    word: str


class SixthSandbox(NamespaceSandbox):
    """One sandbox in namespaces, which knows a word."""

    def resources(self) -> dict[str, Any]:
        handle = self.record.read_handle(Handle)
        return super().resources() | {"word": handle and handle.word}


class SixthIsolation(NamespaceIsolation):
    """A level that the package knows nothing of."""

    name = LEVEL
    features = replace(NamespaceIsolation.features, requires=(*NamespaceIsolation.features.requires, "cgroup.cpuset"))

    def create(self, spec: SandboxSpec, record: Record, undo: ExitStack) -> NamespaceSandbox:
        record.keep_handle(Handle(f"word of {spec.name}"))
        return super().create(spec, record, undo)

    def adopt(self, record: Record) -> SixthSandbox:
        return SixthSandbox(record)
