"""The event loop: wait for events of any descriptor with epoll(7), and call their handlers."""

from __future__ import annotations

import os
from _collections import deque  # type: ignore[import-not-found] # in C; `collections` costs 2 ms to import
from _heapq import heappop, heappush
from select import EPOLLIN, epoll
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workloads.net import Socket

    Handler = Callable[[int], None]

TICK = 1.0
"""Seconds between checks of deadlines; the loop wakes up at least this often."""


class EventLoop:
    """`while True: event = get_event(); handler(event)`.

    Attributes:
        now: the monotonic clock at the last wake-up.
    """

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._waking = False
        self._running = True
        self.now = monotonic()
        self._wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.register(self._wake_read, EPOLLIN, self._woken)

    def run(self) -> None:
        """Call handlers until `stop` is called."""
        handlers = self._handlers
        while self._running:
            events = self._epoll.poll(self._timeout(), 256)
            self.now = monotonic()
            for descriptor, event in events:
                handler = handlers.get(descriptor)
                if handler is not None:  # an earlier handler of this round may have closed it
                    handler(event)
            if self._timers:
                self._run_timers()

    def stop(self) -> None:
        """Make `run` return after this round."""
        self._running = False

    def register(self, descriptor: int | Socket, events: int, handler: Handler) -> None:
        """Call `handler` with the event mask whenever one of `events` holds for the descriptor."""
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._epoll.register(number, events)
        self._handlers[number] = handler

    def modify(self, descriptor: int, events: int) -> None:
        """Change the events to wait for; with 0, only errors are reported."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Forget a descriptor that is about to be closed. The kernel then removes it from the epoll set."""
        self._handlers.pop(descriptor, None)

    def unregister(self, descriptor: int) -> None:
        """Stop watching a descriptor that remains open."""
        self._epoll.unregister(descriptor)
        self.forget(descriptor)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call a function at a time of the monotonic clock."""
        self._timer_count += 1  # decides between equal times, as functions cannot be compared
        heappush(self._timers, (when, self._timer_count, callback))

    def post(self, callback: Callable[[], None]) -> None:
        """Call a function soon on the loop's thread. This is the only method that other threads may call."""
        # There is no lock, because signal handlers call this too, between any two bytecodes of the loop itself. The
        # function is appended before the flag is read, and the loop clears the flag before it empties the queue, so no
        # function is missed.
        self._posted.append(callback)
        if not self._waking:
            self._waking = True
            os.write(self.wake_write, b"\0")

    def close(self) -> None:
        """Close the loop's own descriptors."""
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self.wake_write)

    def _timeout(self) -> float:
        if not self._timers:
            return TICK
        return min(max(self._timers[0][0] - monotonic(), 0.0), TICK)

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            heappop(self._timers)[2]()

    def _woken(self, _event: int) -> None:
        os.read(self._wake_read, 4096)
        self._waking = False
        while self._posted:
            self._posted.popleft()()
