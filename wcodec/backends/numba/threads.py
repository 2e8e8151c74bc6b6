"""Ranges of segments shared out to threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final, TypeVar

from wcodec.backends.numba.scratch import Scratch, borrow_scratch
from wcodec.processes import Task, Workers

T = TypeVar("T")

#: words that a thread takes at once: enough to be worth it, little enough to share out
TASK_NBYTES: Final = 1 << 23
#: less than that is done in the caller's thread: to wake another one takes as long
INLINE_NBYTES: Final = 1 << 20


class Threads:
    """Threads, each with scratch of its own.

    Parameters
    ----------
    n
        Threads that work at once, the caller's among them.
    """

    def __init__(self, n: int) -> None:
        self.n, self._workers = n, Workers(n - 1, "wcodec")
        self._free: list[Scratch] = []

    def map(self, step: Callable[[int, int, Scratch], T], n: int, nbytes: int) -> list[T]:
        """Results of ``step(first, last, scratch)`` for ranges that make up `n` items.

        `nbytes` is the size of all items. The caller's thread takes part: Linux wakes two threads
        of a waiting caller on the same core, and moves one only after 2 to 4 ms.
        """
        if n == 0:
            return []
        size = n
        if self.n > 1 and nbytes >= INLINE_NBYTES:
            size = max(1, min(-(-n // self.n), n * TASK_NBYTES // nbytes))
        if size == n:
            with borrow_scratch(self._free) as scratch:
                return [step(0, n, scratch)]
        firsts, turns, out = range(0, n, size), count(), list[Any]([None] * -(-n // size))

        def work() -> None:
            with borrow_scratch(self._free) as scratch:
                while (i := next(turns)) < len(firsts):
                    out[i] = step(firsts[i], min(firsts[i] + size, n), scratch)

        helpers = list[Task[None]]()
        try:
            for _ in range(min(self.n, len(firsts)) - 1):
                helpers.append(self._workers.begin(work))
            work()
        finally:  # after an error or an interrupt, none may go on to write to the caller's arrays
            turns = count(len(firsts))
            helped = [h for h in helpers if h.settle()]
            helpers.clear()
        while helped:  # an error holds this frame
            helped.pop(0).result()
        return out

    def close(self) -> None:
        """End all threads, and give back their scratch. `map` takes new ones."""
        self._workers.close()
        self._free = []
