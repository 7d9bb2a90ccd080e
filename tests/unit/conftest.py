"""Unit tests leave the host alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.network import lab, publish


@pytest.fixture(scope="module", autouse=True)
def the_lab_stays() -> Iterator[None]:
    """Keep the lab network of this host: by the state directory of a unit test nobody uses it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (lab, publish):
            patch.setattr(module, "teardown", list)
        yield
