"""Work that is done ahead of who wants it, and its progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

#: buffers that `Decoder.chunks` uses in turn: one is filled while others are written
CHUNK_BUFFERS: Final = 3
S = TypeVar("S")
T = TypeVar("T")
Progress = Callable[[int], object]  #: called with the number of decoded bytes that were just done


def ignore_progress(_: int) -> None:
    """No progress wanted."""


def ahead(function: Callable[[S], T], items: Iterable[S], n: int) -> Iterator[T]:
    """``map(function, items)``, with up to `n` calls at once in threads of their own;
    with none, in the caller's.
    """
    if n < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n, "wcodec-ahead") as threads:
        under_way: deque[Future[T]] = deque()
        try:
            for item in items:
                if len(under_way) == n:
                    yield under_way.popleft().result()
                under_way.append(threads.submit(function, item))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for call in under_way:
                call.cancel()
