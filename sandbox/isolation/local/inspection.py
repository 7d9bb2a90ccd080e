"""Inspection of a local sandbox. Its init is a process of this host, so everything is read from the host's kernel."""

from __future__ import annotations

from sandbox.isolation import inspection
from sandbox.isolation.base import State
from sandbox.isolation.in_force import Inspection
from sandbox.kernel.cgroup import Group
from sandbox.spec import Limits
from sandbox.state.record import Record


@inspection.readable()
def inspect(record: Record, group: Group, state: State, limits: Limits | None) -> Inspection:
    """Return the complete inspection.

    Args:
        record: of the sandbox.
        group: its control group.
        state: its current state.
        limits: as read back; None if they cannot be read.
    """
    init = inspection.host_view(state.pid)
    kills = group.events().get("oom_kill")
    return inspection.inspection(
        init,
        state.pid,
        inspection.limits_in_force(limits, init, group=group),
        inspection.network_of(init, record.address, own=inspection.own_network(state.pid)),
        inspection.outcome(
            record,
            ended=not state.running and record.process is not None,
            code=state.exit_code,
            oom_killed=None if kills is None else kills > 0,
        ),
    )
