"""Send a signal to a workload."""

from __future__ import annotations

from sandbox.lifecycle.find import Reference, get


def kill(reference: Reference, number: int) -> None:
    """Send a signal, even while another command, such as a long `stop`, holds the sandbox's lock.

    Raises:
        NotFoundError
        EngineError: it is not running, or its level cannot deliver this signal.
    """
    get(reference).sandbox.kill(number)
