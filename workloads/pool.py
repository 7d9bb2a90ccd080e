"""Worker threads that take work from one queue; the work may block."""

from __future__ import annotations

from _queue import SimpleQueue
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_WORKERS = 8


class Pool:
    """A fixed number of threads, started when the first work is submitted."""

    def __init__(self, size: int) -> None:
        self.size = size or DEFAULT_WORKERS
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not raise, on the next free thread."""
        if not self._started:
            self._started = True
            for _ in range(self.size):
                start_new_thread(self._worker, ())
        self._work.put(work)

    def _worker(self) -> None:
        while True:
            self._work.get()()
