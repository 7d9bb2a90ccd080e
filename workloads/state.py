"""Numbers that requests share: between the threads of a process, or between processes."""

from __future__ import annotations

from _thread import allocate_lock
from fcntl import LOCK_EX, LOCK_UN, lockf
from time import sleep


class Cell:
    """An integer in the memory of one process; its threads share it by looking at it, under a lock."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._value = 0

    def get(self) -> int:
        """The value now."""
        return self._value

    def set(self, value: int) -> None:
        """Put a value, for a cell that one thread alone writes to."""
        self._value = value

    def add(self, amount: int) -> int:
        """Add, and return the sum; no concurrent addition is lost."""
        with self._lock:
            self._value += amount
            return self._value

    def add_unsafely(self, amount: int) -> int:
        """Read, modify, write, with no lock: an addition between our read and our write is lost."""
        value = self._value
        sleep(0)  # another thread may run here, as it may at any call
        self._value = value + amount
        return self._value


class SharedCell:
    """An integer that processes share. It takes the kernel's help: a shared mapping (mmap(2)) and a lock (fcntl(2))."""

    BYTES = 8

    def __init__(self, memory: memoryview, lock: int, index: int) -> None:
        self._memory = memory
        self._lock = lock
        self._index = index

    def get(self) -> int:
        """The value now."""
        value: int = self._memory[self._index]
        return value

    def set(self, value: int) -> None:
        """Put a value, for a cell that one process alone writes to."""
        self._memory[self._index] = value

    def add(self, amount: int) -> int:
        """Add, and return the sum; no concurrent addition of another process is lost."""
        # A record lock belongs to a process, not to a descriptor, so the descriptor may be inherited by fork.
        lockf(self._lock, LOCK_EX, self.BYTES, self._index * self.BYTES)
        try:
            total: int = self._memory[self._index] + amount
            self._memory[self._index] = total
        finally:
            lockf(self._lock, LOCK_UN, self.BYTES, self._index * self.BYTES)
        return total

    def add_unsafely(self, amount: int) -> int:
        """Read, modify, write, with no lock."""
        value = self.get()
        sleep(0)
        self.set(value + amount)
        return value + amount


class Counts:
    """What a server counts.

    Attributes:
        counter: behind `/counter`.
        finished: requests on connections that have ended, in a server of one process.
        connections: open ones, in a server that forks.
        places: requests, in a server that forks: a number for each child that can be there at once. Each has one
            writer, so it takes no lock. A child goes on counting where the one before it at that place has stopped, so
            the sum is of all, those included that have crashed.
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
        """For a server of one process."""
        return cls(Cell(), Cell())

    @classmethod
    def of_processes(cls, children: int) -> tuple[Counts, memoryview]:
        """For a server that forks, up to so many children, and their places; to be made before the first fork."""
        import os
        from mmap import mmap

        size = (2 + children) * SharedCell.BYTES  # only pages that are written to take memory
        descriptor = os.memfd_create("counts")
        os.truncate(descriptor, size)
        memory = memoryview(mmap(descriptor, size)).cast("q")  # signed, 64 bits
        places = memory[2:]
        return cls(SharedCell(memory, descriptor, 0), SharedCell(memory, descriptor, 1), places), places
