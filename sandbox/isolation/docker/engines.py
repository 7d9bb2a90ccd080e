"""Which engines may hold something of ours, remembered on disk: at a clean-up DOCKER_HOST may say another one.

One file in the host's directory for each Docker network, changed under a lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sandbox.errors import UnavailableError
from sandbox.host.docker import Endpoint
from sandbox.state import paths
from sandbox.state.store import named_lock

_LOCK = "docker-engines"


def noted(network: str) -> list[Endpoint]:
    """The engines that were noted to have a network; a file that is damaged has none."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        raw = json.loads(_path(network).read_text(encoding="utf-8"))
        return [Endpoint.from_json(one) for one in raw]
    return []


def note(network: str, endpoint: Endpoint) -> None:
    """Remember an engine; before anything is made there.

    Raises:
        StoreError: the lock cannot be taken.
    """
    if endpoint in noted(network):
        return
    with named_lock(_LOCK):
        _write(network, [*(one for one in noted(network) if one != endpoint), endpoint])


def forget(network: str, endpoint: Endpoint) -> None:
    """Nothing of ours is there any more.

    Raises:
        StoreError: the lock cannot be taken.
    """
    if endpoint not in noted(network):
        return
    with named_lock(_LOCK):
        _write(network, [one for one in noted(network) if one != endpoint])


def _path(network: str) -> Path:
    return paths.host_dir() / f"engines-of-{network}.json"


def _write(network: str, endpoints: list[Endpoint]) -> None:
    path = _path(network)
    if not endpoints:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps([one.to_json() for one in endpoints]), encoding="utf-8")
    temporary.replace(path)


def each(network: str, act: Callable[[Endpoint], list[str]]) -> list[str]:
    """Do something at the current engine and at each noted one, and gather what it says.

    A local engine that does not run has nothing that does; nor can one that was noted be asked while it is away. Its
    note stays.

    Raises:
        UnavailableError: the current engine is on another host, and cannot be reached.
        EngineError
    """
    current = Endpoint.current()
    found = []
    for endpoint in dict.fromkeys((current, *noted(network))):
        try:
            found += act(endpoint)
        except UnavailableError:
            if endpoint == current and not endpoint.local:
                raise
    return found
