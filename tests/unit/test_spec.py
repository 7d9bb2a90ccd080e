"""The spec, and its JSON form in a record."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sandbox.spec import Mount, Publish, SandboxSpec
from sandbox.state import codec


def test_json_round_trip() -> None:
    one = SandboxSpec(
        "a",
        "reactor",
        "vm",
        ("x", "y"),
        env=(("A", "b"),),
        port=None,
        cpus=0.5,
        cpuset="0",
        disk=1,
        mounts=(Mount("/a", "/b", True),),
        publish=(Publish(1, 2),),
        app=True,
        workdir="/app",
    )
    assert codec.decode(SandboxSpec, json.loads(json.dumps(dataclasses.asdict(one))), "spec") == one


def test_a_spec_is_frozen() -> None:
    one = SandboxSpec("a", "reactor", "vm", ("x",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.memory = 1  # type: ignore[misc]
