"""The pipes that a local workload writes to, and the keeper that reads them and is the parent of its init.

The pipes belong to the workload's user (fchown(2) of a pipe changes its inode, which both ends share), so that it may
open them anew by /dev/stdout, /dev/stderr and /proc/self/fd.
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
    """Two pipes; a context manager that closes what was not handed over.

    Attributes:
        writing: the workload's ends, stdout's and stderr's.
        keeper: reads the other ends, once it was started.
    """

    def __init__(self, record: Record, uid: int, events: Path | None) -> None:
        """Make them.

        Args:
            record: of the sandbox.
            uid: the workload's user and group, this host's number.
            events: where the kernel counts its OOM kills.

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
        """Make the init as a child of the keeper; its pid (see `enter.Start`).

        Raises:
            OSError
        """
        self.keeper = supervision.launch(self._record, self._sources(), spawn=make, events=self._events)
        return self.keeper.child

    def watch(self, pid: int, status: int) -> None:
        """Start the keeper of an init that is the zygote's child; `status` is read for its exit code, and closed.

        Raises:
            OSError
        """
        self.keeper = supervision.launch(self._record, self._sources(), pid=pid, status=status, events=self._events)

    def _sources(self) -> list[Source]:
        found = [Source(*pair) for pair in zip(self._reading, (STDOUT, STDERR), strict=True)]
        self._reading = []
        return found
