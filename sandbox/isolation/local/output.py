"""The pipes that a local workload writes to, and the keeper that reads them and is the parent of its init.

The pipes belong to the workload's user, so that it may open them through /dev/stdout, /dev/stderr and /proc/self/fd.
(fchown(2) changes the pipe's inode, which both ends share.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sandbox.isolation import supervision
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.supervision import Keeper, Source
from sandbox.state.record import Record


class Outputs:
    """Two pipes; a context manager that closes the ends that were not handed to the keeper.

    Attributes:
        writing: the workload's ends for stdout and stderr.
        keeper: reads the other ends; None until it is started.
    """

    def __init__(self, record: Record, uid: int, events: Path | None) -> None:
        """Create the pipes.

        Args:
            record: of the sandbox.
            uid: the workload's user and group id on this host.
            events: the file in which the kernel counts the sandbox's OOM kills.

        Raises:
            OSError
        """
        self.keeper: Keeper | None = None
        self._record = record
        self._events = None if events is None else str(events)
        out, err = os.pipe(), os.pipe()
        self._reading = [out[0], err[0]]
        self.writing = (out[1], err[1])
        for descriptor in self.writing:
            os.fchown(descriptor, uid, uid)

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (*self._reading, *self.writing):
            os.close(descriptor)

    def start(self, make: Callable[[], int]) -> int:
        """Start the keeper, which creates the init by calling `make`; return the init's pid (see `enter.Start`).

        Raises:
            OSError
        """
        self.keeper = supervision.launch(self._record, self._sources(), spawn=make, events=self._events)
        return self.keeper.child

    def watch(self, pid: int, status: int) -> None:
        """Start the keeper of an init that is the zygote's child; it reads the exit code from `status`, and closes it.

        Raises:
            OSError
        """
        self.keeper = supervision.launch(self._record, self._sources(), pid=pid, status=status, events=self._events)

    def _sources(self) -> list[Source]:
        found = [Source(*pair) for pair in zip(self._reading, (STDOUT, STDERR), strict=True)]
        self._reading = []
        return found
