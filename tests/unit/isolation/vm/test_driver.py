"""Test the specs that the level vm refuses, before it asks any engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandbox.errors import SpecError
from sandbox.isolation.vm.driver import MIN_MEMORY, VmIsolation
from sandbox.isolation.vm.sandbox import VmSandbox
from sandbox.kernel import cgroup
from sandbox.kernel.cgroup import Hierarchy
from sandbox.spec import MIB, SandboxSpec
from sandbox.state.record import Record

SPEC = SandboxSpec(name="web", workload="reactor", isolation="vm", argv=("/bin/true",))


def test_the_default_is_fine() -> None:
    VmIsolation().check(SPEC)


def test_too_little_memory_for_a_kernel() -> None:
    VmIsolation().check(replace(SPEC, memory=MIN_MEMORY))
    with pytest.raises(SpecError, match="too little") as caught:
        VmIsolation().check(replace(SPEC, memory=MIN_MEMORY - MIB))
    assert caught.value.hint == f"at least {MIN_MEMORY // MIB}m"


def test_memory_comes_in_whole_mebibytes() -> None:
    with pytest.raises(SpecError) as caught:
        VmIsolation().check(replace(SPEC, memory=256 * MIB + 4096))
    assert caught.value.hint == "256m or 257m"


def test_a_fraction_of_a_processor_needs_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "hierarchy", lambda: Hierarchy("v2", {}, None, frozenset()))
    VmIsolation().check(replace(SPEC, cpus=2.0))
    with pytest.raises(SpecError) as caught:
        VmIsolation().check(replace(SPEC, cpus=0.5))
    assert caught.value.hint == "--cpus 1"


def test_a_machine_that_was_never_made_is_not_running() -> None:
    record = Record(id="0123456789ab", spec=SPEC, address="198.18.2.9")
    sandbox = VmIsolation().adopt(record)
    assert isinstance(sandbox, VmSandbox)
    assert not sandbox.state().running
    assert sandbox.state().exit_code is None
    assert list(sandbox.logs()) == []
    assert sandbox.wait(0) is None
    sandbox.remove()
    sandbox.remove()
