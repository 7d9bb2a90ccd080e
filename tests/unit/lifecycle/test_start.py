"""Test the steps of a start that are the manager's own, with fake sandboxes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox.errors import CommandNotFoundError, EngineError, LimitError
from sandbox.host.docker import Engine
from sandbox.isolation.base import ExecResult
from sandbox.isolation.docker.gvisor import GVisorSandbox
from sandbox.isolation.docker.sandbox import ContainerSandbox
from sandbox.lifecycle import start
from sandbox.spec import MIB, Limits, SandboxSpec
from sandbox.state.record import Record

SERVER = SandboxSpec(name="web-1", workload="reactor", isolation="gvisor", argv=("reactor",), port=8080)
COMMAND = replace(SERVER, port=None)


def made_up(answer: Limits | Exception, *, over: bool) -> Any:
    def limits() -> Limits:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(timeout: float) -> int:
        if not over:
            raise TimeoutError
        return 0

    return SimpleNamespace(limits=limits, wait=wait)


@pytest.mark.parametrize("answer", [EngineError("gone"), Limits(1.0, 256 * MIB, None, "", None)])
def test_limits_of_a_command_that_is_over_need_not_be_readable(answer: Limits | Exception) -> None:
    spec = replace(COMMAND, cpus=1.0, memory=256 * MIB)
    start.check_limits(spec, made_up(answer, over=True))
    with pytest.raises((EngineError, LimitError)):
        start.check_limits(spec, made_up(answer, over=False))
    with pytest.raises((EngineError, LimitError)):
        start.check_limits(replace(spec, port=8080), made_up(answer, over=True))


def test_a_limit_that_can_be_read_must_be_right_even_then() -> None:
    wrong = Limits(1.0, 512 * MIB, None, "", None)
    with pytest.raises(LimitError, match="memory"):
        start.check_limits(replace(COMMAND, cpus=1.0, memory=256 * MIB), made_up(wrong, over=True))


@pytest.mark.parametrize(
    "end",
    [
        CommandNotFoundError("there is no command '/bin/sh' inside"),
        TimeoutError("it took longer"),
        ExecResult(137, b"", b""),
        ExecResult(137, b"128\n", b""),
        ExecResult(0, b"128\n", b""),
    ],
)
def test_gvisor_ends_while_it_is_asked(end: ExecResult | Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = GVisorSandbox(Record("0123456789ab", COMMAND, "198.18.2.7"), Engine("/run/x"))

    def run(*_: Any, **__: Any) -> ExecResult:
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(sandbox, "exec", run)
    monkeypatch.setattr(sandbox, "state", lambda: SimpleNamespace(running=True, paused=False))
    monkeypatch.setattr(ContainerSandbox, "limits", lambda _: Limits(1.0, 256 * MIB, 4096, "dockerd"))
    with pytest.raises(EngineError, match="inside"):
        sandbox.limits()
