"""The list on disk of engines that may hold our Docker network; at a clean-up DOCKER_HOST may name another engine.

There is one file per Docker network in the host's directory, changed under a lock.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from sandbox.state import paths
from sandbox.state.store import named_lock

_LOCK = "docker-engines"


def noted(network: str) -> list[str]:
    """Return the sockets of the engines noted for a network; none if the file is damaged."""
    with suppress(OSError, ValueError):
        raw = json.loads(_path(network).read_text(encoding="utf-8"))
        if isinstance(raw, list):
            return [one for one in raw if isinstance(one, str) and one.startswith("/")]
    return []


def note(network: str, socket: str) -> None:
    """Note an engine, before anything is created in it.

    Raises:
        StoreError: the lock cannot be taken.
    """
    if socket not in noted(network):
        with named_lock(_LOCK):
            _write(network, [*noted(network), socket])


def forget(network: str, socket: str) -> None:
    """Remove an engine from the list, once nothing of ours is left in it.

    Raises:
        StoreError: the lock cannot be taken.
    """
    if socket in noted(network):
        with named_lock(_LOCK):
            _write(network, [one for one in noted(network) if one != socket])


def _path(network: str) -> Path:
    return paths.host_dir() / f"engines-of-{network}.json"


def _write(network: str, sockets: list[str]) -> None:
    path = _path(network)
    if not sockets:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(list(dict.fromkeys(sockets))), encoding="utf-8")
    temporary.replace(path)
