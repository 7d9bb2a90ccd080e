"""Check that a process listens on a local socket. The file alone does not prove it: it may be left by a dead daemon."""

from __future__ import annotations

import socket
from pathlib import Path

_TIMEOUT = 2.0


def listens(path: Path) -> bool:
    """Return whether a stream socket accepts connections; also True if we may not connect to it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_TIMEOUT)
        try:
            client.connect(str(path))
        except (PermissionError, TimeoutError):  # a full queue has a listener
            return True
        except OSError:
            return False
    return True
