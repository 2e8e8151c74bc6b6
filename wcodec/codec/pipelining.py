"""Work in threads beside the caller: results made ahead, outputs written behind, and progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, BinaryIO, Final, TypeVar

from wcodec.processes import Lock, Task, Workers

#: buffers that `Decoder.chunks` uses in turn: one is filled while others are written
CHUNK_BUFFERS: Final = 3
S = TypeVar("S")
T = TypeVar("T")
Progress = Callable[[int], object]  #: called with the number of decoded bytes that were just done


def ignore_progress(_: int) -> None:
    """No progress wanted."""


def map_ahead(
    function: Callable[[S], T], items: Iterable[S], n_threads: int, n_waiting: int = 0
) -> Generator[T, None, None]:
    """``map(function, items)``, done ahead of who wants it.

    Parameters
    ----------
    n_threads
        Calls at once, in threads of their own; with 0 they are made in the caller's when wanted.
    n_waiting
        Results that may wait for the caller besides.
    """
    if n_threads < 1:
        yield from map(function, items)
        return
    with Workers(n_threads, "wcodec-ahead") as workers:
        under_way = deque[Task[T]]()
        try:
            for item in items:
                if len(under_way) == n_threads + n_waiting:
                    yield under_way.popleft().result()
                under_way.append(workers.begin(function, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for task in under_way:
                task.settle()


class WriteBehind:
    """Writes to a file in a thread of its own, in order, while the caller makes what comes next.

    Use as a context; it ends when all is written. What is given to `write` must not change before
    `CHUNK_BUFFERS` more writes.

    Parameters
    ----------
    stream
        The file.
    threads
        Threads of the backend that is used: with 1, all is written in the caller's.
    spare_nbytes
        So many bytes may wait in more writes than that, where whoever makes them lets them be.
    """

    def __init__(self, stream: BinaryIO, threads: int | None = None, spare_nbytes: int = 0) -> None:
        n_threads = 0 if threads == 1 else 1
        self._spare_nbytes, self._nbytes = spare_nbytes * n_threads, 0
        self._stream, self._most_pending = stream, CHUNK_BUFFERS - 1 if n_threads else 0
        self._data, self._pending = deque[Any](), deque[tuple[Task[None], int]]()
        self._workers, self._lock = Workers(n_threads, "wcodec-write"), Lock()

    def write(self, data: Any) -> int:
        """Write later. Raises what an earlier write has raised."""
        self._data.append(data)
        self._pending.append((self._workers.begin(self._write_next), len(data)))
        self._nbytes += len(data)
        while len(self._pending) > self._most_pending and self._nbytes > self._spare_nbytes:
            self._wait()
        return len(data)

    def _wait(self) -> None:
        task, nbytes = self._pending.popleft()
        self._nbytes -= nbytes
        task.result()

    def _write_next(self) -> None:
        with self._lock:  # whoever does it: in order
            self._stream.write(self._data.popleft())

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._wait()
        finally:
            for task, _nbytes in self._pending:
                task.settle()
            self._workers.close()
