"""A container's output: the keeper reads the engine's attach stream; dockerd writes no log."""

from __future__ import annotations

import socket

from sandbox.errors import EngineError
from sandbox.host.docker import Engine
from sandbox.isolation import keeper, supervision
from sandbox.isolation.keeper import MULTIPLEXED
from sandbox.isolation.supervision import Keeper, Source
from sandbox.state.record import Record


def attach(engine: Engine, container: str) -> socket.socket:
    """Connect to stdout and stderr of a container; called before it starts, so that no output is missed.

    dockerd buffers 1 MB and then blocks the workload, so nothing is lost before the keeper reads.

    Raises:
        EngineError, UnavailableError
    """
    return engine.upgrade(keeper.attach_path(container), f"the output of {container} cannot be read")


def keep(record: Record, stream: socket.socket, engine: Engine, container: str, pid: int | None) -> Keeper:
    """Start the keeper, which then owns the stream.

    Args:
        record: of the sandbox.
        stream: the result of `attach`.
        engine: of the container; the keeper asks it how the container ended, and attaches anew if dockerd was
            restarted.
        container: its name.
        pid: of its init; None if that has already ended.

    Raises:
        EngineError: the keeper cannot be started.
    """
    try:
        sources = [Source(stream.detach(), MULTIPLEXED)]
        return supervision.launch(record, sources, pid=pid, engine=(engine.socket, container))
    except OSError as error:
        raise EngineError(f"the keeper of {container} could not be started: {error.strerror or error}") from error
