"""Worker threads: they take work from one queue, and may block as long as they like."""

from __future__ import annotations

from _queue import SimpleQueue
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_WORKERS = 8


class Pool:
    """A fixed number of threads, started with the first piece of work: a server that needs none has none."""

    def __init__(self, size: int) -> None:
        self.size = size or DEFAULT_WORKERS
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` on the next free thread; it must not raise."""
        if not self._started:
            self._started = True
            for _ in range(self.size):
                start_new_thread(self._worker, ())
        self._work.put(work)

    def _worker(self) -> None:
        while True:
            self._work.get()()
