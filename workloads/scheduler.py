"""A scheduler of coroutines for one thread: an event loop whose handlers resume coroutines.

A coroutine is a function that can be suspended and resumed. When it would have to wait, it registers the event it waits
for and yields, and the thread runs another coroutine. When epoll reports the event, the coroutine continues after its
`await`. The kernel sees only one thread, which blocks in epoll_wait(2) and nowhere else.
"""

from __future__ import annotations

from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from time import monotonic
from types import coroutine

from workloads.loop import TICK, EventLoop
from workloads.net import RECEIVE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any, TypeVar

    from workloads.net import Socket
    from workloads.pool import Pool

    Task = Coroutine[Any, None, None]
    T = TypeVar("T")


_UNWATCHED = -1


@coroutine
def suspended() -> Generator[None, None, None]:
    """Suspend the coroutine that awaits this, until it is resumed."""
    yield


class Scheduler(EventLoop):
    """Runs coroutines on the thread that calls `run`; other threads may call `spawn` and `post`.

    Attributes:
        current: the running coroutine.
        coroutines: number of coroutines that have started and not ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current: Task | None = None
        self.coroutines = 0
        self._streams: set[Stream] = set()
        self.call_at(self.now + TICK, self._tick)

    def spawn(self, task: Task) -> None:
        """Schedule a coroutine to start."""
        self.post(lambda: self._begin(task))

    def resume(self, task: Task, error: Exception | None = None) -> None:
        """Run a coroutine until it waits again or ends. If an error is given, its `await` raises it."""
        self.current = task
        try:
            if error is None:
                task.send(None)
            else:
                task.throw(error)
        except StopIteration:
            self.coroutines -= 1

    async def run_in(self, pool: Pool, work: Callable[[], T]) -> T:
        """Run `work`, which may block but not raise, on a worker thread; meanwhile other coroutines run here."""
        task = self.current
        assert task is not None  # noqa: S101 - only a running coroutine can await this
        results: list[T] = []

        def done() -> None:
            self.resume(task)

        def on_worker() -> None:
            results.append(work())
            self.post(done)

        pool.submit(on_worker)
        await suspended()
        return results[0]

    def _begin(self, task: Task) -> None:
        self.coroutines += 1
        self.resume(task)

    def _tick(self) -> None:
        for stream in list(self._streams):
            stream.check_deadline(self.now)
        self.call_at(self.now + TICK, self._tick)

    def watch(self, stream: Stream) -> None:
        """Start to check the deadline of a stream."""
        self._streams.add(stream)

    def unwatch(self, stream: Stream) -> None:
        """Stop checking the deadline of a stream."""
        self._streams.discard(stream)


class Stream:
    """A socket on which one coroutine at a time can wait.

    Attributes:
        deadline: on the monotonic clock, exact to a tick; a wait that lasts longer raises TimeoutError.
    """

    __slots__ = ("_descriptor", "_events", "_scheduler", "_socket", "_task", "deadline")

    def __init__(self, scheduler: Scheduler, socket: Socket, events: int = EPOLLIN) -> None:
        socket.setblocking(False)
        self._scheduler = scheduler
        self._socket = socket
        self._descriptor = socket.fileno()
        self._task: Task | None = None
        self._events = events
        self.deadline = float("inf")
        scheduler.register(self._descriptor, events, self._ready)
        scheduler.watch(self)

    @coroutine
    def read(self) -> Generator[None, None, bytes]:
        """Wait for bytes. Returns b"" if the other side has closed the connection.

        Raises:
            TimeoutError: the deadline has passed.
            OSError: the connection is broken.
        """
        while True:
            if self._events != EPOLLIN:
                self._watch(EPOLLIN)
            self._task = self._scheduler.current
            yield
            try:
                return self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue

    @coroutine
    def write(self, data: bytes, patience: float | None = None) -> Generator[None, None, None]:
        """Send all data; waits only if the socket's buffer is full.

        Args:
            data: the bytes.
            patience: limit of each wait in seconds; None leaves the deadline as it is.

        Raises:
            TimeoutError, OSError: as for `read`.
        """
        while True:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            if patience is not None:
                self.deadline = monotonic() + patience
            yield from self.writable()

    @coroutine
    def writable(self) -> Generator[None, None, None]:
        """Wait until the socket is writable; if it is connecting, until that has succeeded or failed."""
        if self._events != EPOLLOUT:
            self._watch(EPOLLOUT)
        self._task = self._scheduler.current
        yield

    def expire_after(self, seconds: float) -> None:
        """Set a deadline with a timer of its own, for waits that are much shorter than a tick."""
        self.deadline = deadline = monotonic() + seconds

        def expire() -> None:
            if self.deadline == deadline:  # else that wait is over
                self.check_deadline(float("inf"))

        self._scheduler.call_at(deadline, expire)

    def check_deadline(self, now: float) -> None:
        """Raise TimeoutError in the waiting coroutine if the deadline has passed. Called every second and by timers."""
        if self.deadline < now and self._task is not None:
            task, self._task = self._task, None
            self._scheduler.resume(task, TimeoutError())

    def close(self) -> None:
        """Close the socket."""
        if self._socket.fileno() >= 0:
            self._scheduler.unwatch(self)
            self._scheduler.forget(self._descriptor)
            self._socket.close()

    def _ready(self, event: int) -> None:
        task = self._task
        if task is None:
            # Its coroutine is waiting for something else, and epoll would report this event again and again; for a
            # broken connection, it does so whatever the mask is (epoll_ctl(2), EPOLLHUP).
            if event & (EPOLLHUP | EPOLLERR):
                self._scheduler.unregister(self._descriptor)
                self._events = _UNWATCHED
            else:
                self._watch(0)
        else:
            self._task = None
            self._scheduler.resume(task)

    def _watch(self, events: int) -> None:
        if self._events == _UNWATCHED:
            self._scheduler.register(self._descriptor, events, self._ready)
        else:
            self._scheduler.modify(self._descriptor, events)
        self._events = events
