"""Counters that requests share: between the threads of a process, or between processes."""

from __future__ import annotations

from _thread import allocate_lock
from fcntl import LOCK_EX, LOCK_UN, lockf
from time import sleep


class Cell:
    """An integer that the threads of a process share; additions take a lock."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._value = 0

    def get(self) -> int:
        """Return the value."""
        return self._value

    def set(self, value: int) -> None:
        """Set the value, for a cell to which only one thread writes."""
        self._value = value

    def add(self, amount: int) -> int:
        """Add and return the sum; no concurrent addition is lost."""
        with self._lock:
            self._value += amount
            return self._value

    def add_unsafely(self, amount: int) -> int:
        """Read, add and write without a lock: an addition by another thread in between is lost."""
        value = self._value
        sleep(0)  # lets another thread run here, as may happen at any call
        self._value = value + amount
        return self._value


class SharedCell:
    """An integer that processes share, by a shared mapping (mmap(2)) and a record lock (fcntl(2))."""

    BYTES = 8

    def __init__(self, memory: memoryview, lock: int, index: int) -> None:
        self._memory = memory
        self._lock = lock
        self._index = index

    def get(self) -> int:
        """Return the value."""
        value: int = self._memory[self._index]
        return value

    def set(self, value: int) -> None:
        """Set the value, for a cell to which only one process writes."""
        self._memory[self._index] = value

    def add(self, amount: int) -> int:
        """Add and return the sum; no concurrent addition by another process is lost."""
        # A record lock belongs to a process, not to a descriptor, so a descriptor inherited by fork will do.
        lockf(self._lock, LOCK_EX, self.BYTES, self._index * self.BYTES)
        try:
            total: int = self._memory[self._index] + amount
            self._memory[self._index] = total
        finally:
            lockf(self._lock, LOCK_UN, self.BYTES, self._index * self.BYTES)
        return total

    def add_unsafely(self, amount: int) -> int:
        """Read, add and write without a lock."""
        value = self.get()
        sleep(0)
        self.set(value + amount)
        return value + amount


class Counts:
    """The counters of a server.

    Attributes:
        counter: the value of `/counter`.
        finished: requests on connections that have ended, for a server of one process.
        connections: open connections, for a server that forks.
        places: requests, for a server that forks: a slot for each child that can exist at a time. Each slot has one
            writer, so no lock is needed. A child continues the count of its predecessor in the slot, so the sum
            includes children that have crashed.
    """

    def __init__(
        self, counter: Cell | SharedCell, connections: Cell | SharedCell, places: memoryview | None = None
    ) -> None:
        self.counter = counter
        self.finished = 0
        self.connections = connections
        self.places = places

    @classmethod
    def of_threads(cls) -> Counts:
        """Create the counters of a server of one process."""
        return cls(Cell(), Cell())

    @classmethod
    def of_processes(cls, children: int) -> tuple[Counts, memoryview]:
        """Create the counters of a server that forks, and the slots of its children. Call it before the first fork."""
        import os
        from mmap import mmap

        size = (2 + children) * SharedCell.BYTES  # memory is used only by pages that are written to
        descriptor = os.memfd_create("counts")
        os.truncate(descriptor, size)
        memory = memoryview(mmap(descriptor, size)).cast("q")  # signed, 64 bits
        places = memory[2:]
        return cls(SharedCell(memory, descriptor, 0), SharedCell(memory, descriptor, 1), places), places
