"""Whether somebody listens on a local socket: a socket file outlives the daemon that a SIGKILL or a lost host ended."""

from __future__ import annotations

import socket
from pathlib import Path

_TIMEOUT = 2.0


def listens(path: Path) -> bool:
    """Whether a connection to a stream socket's file is accepted; also true where it is merely not for us to open."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(path))
        except (PermissionError, TimeoutError):  # a full queue belongs to somebody
            return True
        except OSError:
            return False
    return True
