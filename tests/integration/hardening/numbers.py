"""Calls every system call by its number, inside, with arguments that no call can do anything with.

The text is handed to a Python inside: standard library alone. Argument 1 is JSON: `last`, the highest number, and
`arguments`, for those calls whose verdict or effect depends on them. The answer is one line of JSON: for each number
the error's name, "ok", or "ended" where the call did not come back (it ended, stopped or replaced its process).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys

SECONDS = 1
"""Until a call that waits for ever is given up; it was let through, then."""


def attempt(number: int, arguments: list[int]) -> str:
    """One call in a process of its own, whose end tells nothing but that there was no answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        me = os.getpid()
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(one & (1 << 64) - 1) for one in arguments])
        if os.getpid() == me:
            os.write(writer, b"ok" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?").encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 20).decode()
    os.close(reader)
    os.waitpid(child, 0)
    return said or "ended"


def main() -> None:
    """Try all numbers."""
    asked = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    found = [attempt(number, asked["arguments"].get(str(number), [-1] * 6)) for number in range(asked["last"] + 1)]
    os.write(1, (json.dumps(found) + "\n").encode())


if __name__ == "__main__":
    main()
