from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workloads.server import MODELS, Server


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Server]]:
    """Servers that the tests of a module share, started when first needed."""
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.kill()


@pytest.fixture(params=MODELS)
def server(request: pytest.FixtureRequest, running: dict[str, Server]) -> Server:
    """Return a running server of each model in turn; the test leaves it as it was."""
    model: str = request.param
    if model not in running:
        running[model] = Server(model)
    return running[model]
