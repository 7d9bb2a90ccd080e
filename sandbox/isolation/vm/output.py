"""The workload's output: two virtio ports of the machine, each a socket on the host that the sandbox's keeper reads.

A port has no end of its own, and QEMU takes in more than it has passed on. So the guest writes a mark behind the last
byte of each (see vm/guest/init), with the exit code; the keeper closes its socket there, and only then does the guest
switch the machine off. The mark has the machine's nonce in it, which the workload cannot read.
"""

from __future__ import annotations

import socket

from sandbox.errors import EngineError
from sandbox.isolation import supervision
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.supervision import Keeper, Source
from sandbox.state.record import Record

PORTS = {"stdout": STDOUT, "stderr": STDERR}
"""The sockets in the sandbox's directory, in the order of the ports."""
_HERE = b"\n"
"""What the guest waits for: a port that nobody has connected to looks like one whose reader has gone."""


def keep(record: Record, nonce: str, pid: int) -> Keeper:
    """Connect to a machine that stands, and start the keeper of its output.

    Args:
        record: of the sandbox.
        nonce: of the machine.
        pid: QEMU's.

    Raises:
        EngineError: the machine has ended, or the keeper could not be started.
    """
    sources = []
    try:
        for name, stream in PORTS.items():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
                port.connect(str(record.directory / name))
                port.sendall(_HERE)
                sources.append(Source(port.detach(), stream, f"@{nonce} end ".encode("ascii")))
        # When QEMU has ended, all that it wrote is in the sockets.
        return supervision.launch(record, sources, pid=pid, linger=0)
    except OSError as error:
        raise EngineError(f"the machine's output cannot be read: {error.strerror or error}") from error
