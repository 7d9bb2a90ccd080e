"""A container's output: the engine's attach stream, handed to the keeper. dockerd keeps no log of its own."""

from __future__ import annotations

import socket

from sandbox.errors import EngineError
from sandbox.host.docker import Engine
from sandbox.isolation import keeper, supervision
from sandbox.isolation.keeper import MULTIPLEXED
from sandbox.isolation.supervision import Keeper, Source
from sandbox.state.record import Record


def attach(engine: Engine, container: str) -> socket.socket:
    """Connect to both outputs of a container; before it starts, so that its first byte is not missed.

    dockerd holds 1 MB for us and then the workload back: what is written before the keeper reads is not lost.

    Raises:
        EngineError, UnavailableError
    """
    return engine.upgrade(keeper.attach_path(container), f"the output of {container} cannot be read")


def keep(record: Record, stream: socket.socket, engine: Engine, container: str, pid: int | None) -> Keeper:
    """Start the keeper, which takes the stream over.

    Args:
        record: of the sandbox.
        stream: as of `attach`.
        engine: where the container is: told to the keeper, which asks it how the container ended, and connects anew
            when dockerd was restarted.
        container: its name.
        pid: of its init; None where that has ended already.

    Raises:
        EngineError: it cannot be started.
    """
    try:
        sources = [Source(stream.detach(), MULTIPLEXED)]
        return supervision.launch(record, sources, pid=pid, engine=(engine.socket, container))
    except OSError as error:
        raise EngineError(f"the keeper of {container} could not be started: {error.strerror or error}") from error
