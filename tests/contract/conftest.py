"""The same assertions over every level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.isolation import LEVELS
from sandbox.manager import Manager, Running
from tests.integration.conftest import nothing_left_behind

__all__ = ["nothing_left_behind"]


@pytest.fixture(params=[pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def level(request: pytest.FixtureRequest) -> str:
    """Each isolation level that this host can do."""
    return str(request.param)


@pytest.fixture
def manager() -> Manager:
    """A manager over the real store."""
    return Manager()


@pytest.fixture
def running(level: str, manager: Manager, nothing_left_behind: None) -> Iterator[Running]:
    """A fresh reactor at the level, serving."""
    with manager.running(manager.make_spec("reactor", level, memory="128m", pids_limit=64)) as found:
        yield found
