"""Every integration test is surrounded by a count of what could be left behind: delta 0."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import leaks


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the test that leaves a process, mount, link, rule, cgroup, container, domain or file."""
    if os.geteuid() != 0:
        yield
        return
    before = leaks.snapshot()
    yield
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"
