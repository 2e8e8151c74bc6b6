"""Work in threads beside the caller: results made ahead, outputs written behind, and progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

if TYPE_CHECKING:  # small arrays need no threads
    from concurrent.futures import Future

#: buffers that `Decoder.chunks` uses in turn: one is filled while others are written
CHUNK_BUFFERS: Final = 3
S = TypeVar("S")
T = TypeVar("T")
Progress = Callable[[int], object]  #: called with the number of decoded bytes that were just done


def ignore_progress(_: int) -> None:
    """No progress wanted."""


def map_ahead(
    function: Callable[[S], T], items: Iterable[S], n_threads: int, n_waiting: int = 0
) -> Iterator[T]:
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
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(n_threads, "wcodec-ahead") as threads:
        under_way: deque[Future[T]] = deque()
        try:
            for item in items:
                if len(under_way) == n_threads + n_waiting:
                    yield under_way.popleft().result()
                under_way.append(threads.submit(function, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for call in under_way:
                call.cancel()


class WriteBehind:
    """Writes to a file in a thread of its own, in order, while the caller makes what comes next.

    Use as a context; it ends when all is written. What is given to `write` must not change before
    `CHUNK_BUFFERS` more writes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._stream = stream
        self._pending: deque[Future[int]] = deque()
        self._thread = ThreadPoolExecutor(1, "wcodec-write")

    def write(self, data: Any) -> int:
        """Write later. Raises what an earlier write has raised."""
        while len(self._pending) >= CHUNK_BUFFERS - 1:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._stream.write, data))
        return len(data)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
