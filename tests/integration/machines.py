"""Machines of the vm level for tests that go below the manager: made, and started where that is wanted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from sandbox.isolation import driver
from sandbox.isolation.vm.driver import VmIsolation
from sandbox.isolation.vm.sandbox import VmSandbox
from sandbox.lifecycle import lab as lab_life
from sandbox.network import lab as network
from sandbox.spec import MIB, SandboxSpec
from sandbox.state.store import Store, named_lock

BOOT_TIMEOUT = 90.0
SPEC = SandboxSpec(name="vm-test", workload="none", isolation="vm", argv=("/bin/sleep", "1000"), memory=128 * MIB)


def level() -> VmIsolation:
    return cast(VmIsolation, driver("vm"))


@contextmanager
def created(spec: SandboxSpec, app: Callable[[Path], None] | None = None) -> Iterator[VmSandbox]:
    """A machine that stands, with the lab network and a place in the store, all gone at the end.

    `app` writes the application's files below the directory that it is given.
    """
    store = Store()
    store.ensure()
    with ExitStack() as undo:
        ident, lock = store.claim_id()
        undo.callback(os.close, lock)
        undo.callback(lab_life.remove_intent, ident)
        with named_lock(lab_life.LOCK):
            network.ensure()
            store.mark_used("vm")
            address = network.allocate(store, ident, own_stack=True)
        record = store.new(replace(spec, name=f"vm-test-{ident[:6]}"), address, ident)
        if app is not None:
            undo.callback(shutil.rmtree, record.app_path)
            record.app_path.mkdir()
            app(record.app_path)
        level().prepare(spec, lambda _: None)
        yield level().create(record.spec, record, undo)


@contextmanager
def started(spec: SandboxSpec = SPEC, app: Callable[[Path], None] | None = None) -> Iterator[VmSandbox]:
    """A machine whose workload runs."""
    with created(spec, app) as sandbox:
        sandbox.boot(time.monotonic() + BOOT_TIMEOUT)
        sandbox.start()
        yield sandbox


def shell(script: str, **fields: int) -> SandboxSpec:
    return replace(SPEC, argv=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]


def pid_of(sandbox: VmSandbox) -> int:
    assert sandbox.record.process is not None
    return sandbox.record.process.pid
