"""The same assertions over every level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.isolation import LEVELS
from tests import leaks
from tests.integration.conftest import nothing_left_behind
from tests.verbs import Manager, Running

__all__ = ["nothing_left_behind"]


@pytest.fixture(scope="module", params=[pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def level(request: pytest.FixtureRequest) -> str:
    """Each isolation level that this host can do."""
    return str(request.param)


@pytest.fixture(scope="module")
def manager() -> Manager:
    """A manager over the real store."""
    return Manager()


@pytest.fixture(scope="module")
def nothing_left_of_the_shared_one() -> Iterator[None]:
    """The count around a sandbox that several tests share."""
    before = leaks.snapshot()
    yield
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def running(level: str, manager: Manager, nothing_left_of_the_shared_one: None) -> Iterator[Running]:
    """A reactor at the level, serving; shared by the tests of a module, which leave it as they found it."""
    with manager.running(manager.make_spec("reactor", level, memory="128m", pids_limit=64)) as found:
        yield found
