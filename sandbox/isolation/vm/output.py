"""A virtual machine's output: two virtio ports, each connected to a socket on the host that the keeper reads.

A port has no end of file, and QEMU buffers data. So the guest writes a mark with the exit code after the last byte of
each port (see vm/guest/init). The keeper closes its socket there, and only then does the guest switch the machine off.
The mark contains the machine's nonce, which the workload cannot read.
"""

from __future__ import annotations

import socket

from sandbox.errors import EngineError
from sandbox.isolation import supervision
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.supervision import Keeper, Source
from sandbox.state.record import Record

PORTS = {"stdout": STDOUT, "stderr": STDERR}
"""The names of the sockets in the sandbox's directory, in the order of the ports."""
_HERE = b"\n"
"""Tells the guest that the port is connected: to it, an unconnected port looks like one whose reader is gone."""


def keep(record: Record, nonce: str, pid: int) -> Keeper:
    """Connect to the ports of a machine whose processors are still stopped, and start the keeper.

    Args:
        record: of the sandbox.
        nonce: of the machine.
        pid: of QEMU.

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
