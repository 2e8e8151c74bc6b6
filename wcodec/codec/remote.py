"""A remote file as a source of bytes: few requests, many at once, in memory of a stated size."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from weakref import ref

import numpy as np

from wcodec.codec.ranges import Answer, Ranges, again, ranges_of
from wcodec.codec.sources import FileWords
from wcodec.codec.urls import Url
from wcodec.errors import CodecError, DecodeError
from wcodec.processes import Lock, Task, Workers
from wcodec.reference.memory import nbytes_of
from wcodec.reference.planes import Bytes, Words

HEAD_NBYTES: Final = 1 << 16  #: that the first request asks for
LEAST_TAIL_NBYTES: Final = 1 << 16  #: an index and footer are in so many last bytes,
TAIL_PART: Final = 4096  #: or in this part of a larger file
MOST_TAIL_NBYTES: Final = 1 << 23
GAP_NBYTES: Final = 1 << 17  #: ranges that lie no farther from each other are read as one
BLOCK_NBYTES: Final = 1 << 23  #: the most that one request asks for
AT_ONCE: Final = 16  #: requests, of one file
_STRIDE: Final = 2  #: blocks from one that is read to the next one
_M_ARENA_MAX: Final = -8  #: of ``mallopt``
MEMORY_NBYTES: Final = 1 << 28  #: of what is read ahead, and of what may be wanted again


def default_memory() -> int:
    """Bytes that may be read before they are wanted: as ``WCODEC_REMOTE_MEMORY`` says, or 256 MiB,
    but no more than a sixteenth of what the process may have (``RLIMIT_AS``).
    """
    most = nbytes_of(os.environ.get("WCODEC_REMOTE_MEMORY") or str(MEMORY_NBYTES))
    try:
        import resource
    except ImportError:  # not on this system
        return most
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return most
    _have_few_arenas()
    return min(most, limit // 16)


def _have_few_arenas() -> None:
    """Where addresses are limited, have threads share what they allocate from: of glibc, each would
    take 64 MiB of addresses for itself.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class RemoteSource:
    """A file at a URL; see `FileSource`, whose methods it has.

    Parameters
    ----------
    error
        What is raised where its bytes are not there, or have changed.
    memory
        Bytes that may be read before they are wanted; ``None`` for `default_memory`.

    Raises
    ------
    OSError
        It is not there, or no file.
    """

    is_read = True  #: as of `FileSource`

    def __init__(
        self, url: Url, error: type[CodecError] = DecodeError, memory: int | None = None
    ) -> None:
        self.url, self.name, self._error = url, str(url), error
        if memory is None:
            memory = default_memory()
        #: bytes of a request, and of all that is held
        self.block, self.memory = max(1 << 16, min(BLOCK_NBYTES, memory // 8)), memory
        self._ranges: Ranges = ranges_of(url)
        self._workers = Workers(AT_ONCE, "wcodec-remote")
        self._lock, self._runs, self._closed = Lock(), list[_Run](), False
        first = again(url, "what it is", self._ranges.first, HEAD_NBYTES)
        self.nbytes, self._tag = first.nbytes, first.tag
        self._head, self._tail = _array(first.data), np.empty(0, np.uint8)
        tail = min(MOST_TAIL_NBYTES, max(LEAST_TAIL_NBYTES, self.nbytes // TAIL_PART))
        self._tail_start = max(self._head.size, self.nbytes - tail)

    # ---- requests
    def request(self, start: int, stop: int) -> Bytes:
        """Bytes of the file by one request.

        Raises
        ------
        CodecError
            ``truncated``, ``changed``
        OSError
        """
        answer = again(self.url, f"bytes {start}-{stop - 1}", self._ranges.get, start, stop)
        self._check(answer)
        return _array(answer.data)

    def _check(self, answer: Answer) -> None:
        if answer.nbytes < self.nbytes:
            n = self.nbytes - answer.nbytes
            raise self._error("truncated", f"{n} bytes were cut off its end while it was read")
        if (answer.nbytes, answer.tag) != (self.nbytes, self._tag):
            raise self._error(
                "changed", "the file was written to while it was read; read it again from the start"
            )

    def check(self) -> None:
        """See that the file is in the state in which it was opened. Raises as `request`."""
        self._check(again(self.url, "what it is", ranges_of(self.url).first, 1))

    # ---- reading
    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`. Raises as `request`."""
        out = np.empty(nbytes, np.uint8)
        self.read_into(offset, out)
        return out

    def read_into(self, offset: int, target: Bytes) -> None:
        """Fill `target` with bytes from `offset`. Raises as `request`."""
        self.read_runs([(offset, target.size)], target)

    def read_runs(self, where: list[tuple[int, int]], room: Bytes) -> None:
        """Fill `room` with runs of bytes, given where they start and their sizes: neighbours by one
        request, and all that are needed at once. Raises as `request`.
        """
        if self._closed:
            raise ValueError(f"the file {self.name!r} is closed")
        asked, at = list[tuple[int, Bytes]](), 0
        for start, nbytes in where:
            self._read_held(start, room[at : at + nbytes], asked)
            at += nbytes
        tasks = deque[tuple[_Span, Task[Bytes]]]()
        for span in _joined(asked, self.block):
            if len(tasks) * self.block >= self.memory:
                _fill(*tasks.popleft())
            tasks.append((span, self.begin(span.start, span.stop)))
        while tasks:
            _fill(*tasks.popleft())

    def _read_held(self, start: int, out: Bytes, asked: list[tuple[int, Bytes]]) -> None:
        """Fill `out` with what is held, or read ahead; enter in `asked` what has to be read."""
        while out.size:
            n = out.size
            if start + n > self.nbytes:
                raise self._error("truncated", "the file ends before", offset=start)
            if start < self._head.size:
                n = min(n, self._head.size - start)
                np.copyto(out[:n], self._head[start : start + n])
            elif start >= self._tail_start and (n < self.block or self._tail.size):
                tail = self._read_tail()
                np.copyto(out, tail[start - self._tail_start : start - self._tail_start + n])
            else:
                n = min(n, self._tail_start - start) if start < self._tail_start else n
                run = next((r for r in self._runs if r.start <= start < r.stop), None)
                if run is None:
                    asked.append((start, out[:n]))
                else:
                    n = min(n, run.stop - start)
                    run.read(start, out[:n])
            start, out = start + n, out[n:]

    def _read_tail(self) -> Bytes:
        with self._lock:
            if not self._tail.size:
                self._tail = self.request(self._tail_start, self.nbytes)
            return self._tail

    @contextmanager
    def ahead(self, start: int, stop: int) -> Iterator[None]:
        """Meanwhile, the bytes from `start` to `stop` are read in about this order: what follows is
        asked for before it is wanted.
        """
        first, last = max(start, self._head.size), min(stop, self._tail_start)
        if last <= first or any(r.start <= first and last <= r.stop for r in self._runs):
            yield
            return
        run = _Run(self, first, last)
        with self._lock:
            self._runs.append(run)
        try:
            yield
        finally:
            with self._lock:
                self._runs.remove(run)
            run.end()

    def begin(self, start: int, stop: int) -> Task[Bytes]:
        """Have bytes read in a thread, as long as someone holds the task."""
        task = Task(self.request, start, stop)
        self._workers.begin(_run_if_held, ref(task))
        return task

    def pieces(self, start: int, stop: int) -> Iterator[Bytes]:
        """The bytes from `start` to `stop`, some at a time. Raises as `request`."""
        with self.ahead(start, stop):
            for at in range(start, stop, self.block):
                yield self.read(at, min(self.block, stop - at))

    def look(self, where: list[tuple[int, int]]) -> Bytes:
        """A few bytes at some places, all by requests at once, for who does not begin to read
        there. Raises as `request`.
        """
        out, at, asked = np.empty(sum(n for _, n in where), np.uint8), 0, list[tuple[int, Bytes]]()
        for start, n in where:
            run = next((r for r in self._runs if r.start <= start < r.stop), None)
            held = None if run is None else run.held(start)
            if held is not None and held.size >= n:
                np.copyto(out[at : at + n], held[:n])
            elif start + n <= self._head.size or run is None:
                self._read_held(start, out[at : at + n], asked)
            else:
                asked.append((start, out[at : at + n]))
            at += n
        with Workers(len(where), "wcodec-look") as workers:
            tasks = [
                (span, workers.begin(self.request, span.start, span.stop))
                for span in _joined(asked, self.block)
            ]
            for span, task in tasks:
                _fill(span, task)
        return out

    def words(self, offset: int, nbytes: int, dtype: np.dtype[Any]) -> Words | FileWords:
        """Words of the file, flat: in memory, or, of many, as `FileWords`. Raises as `read`."""
        if nbytes <= self.block:
            return self.read(offset, nbytes).view(dtype)
        return FileWords(self, offset, np.dtype(dtype), (nbytes // np.dtype(dtype).itemsize,))

    def close(self) -> None:
        """Let go of the file. Threads that read from it finish that."""
        self._closed = True
        self._workers.close()


class _Run:
    """A part of a file that is read from front to back: its blocks, those that are asked for and
    those that may be looked at once more.
    """

    def __init__(self, source: RemoteSource, start: int, stop: int) -> None:
        self._source, self.start, self.stop = source, start, stop
        self._block = source.block
        most = max(2, source.memory // self._block)
        self._most_ahead, self._most = most - most // 4, most
        self._lock, self._blocks = Lock(), OrderedDict[int, Task[Bytes]]()
        self._last = -1  #: of the blocks, the last one up to which all has been read

    def read(self, start: int, out: Bytes) -> None:
        """Fill `out` with bytes of the part."""
        while out.size:
            i = (start - self.start) // self._block
            task, n = self._wanted(i), min(out.size, self._stop(i) - start)
            if task is None:  # far ahead
                np.copyto(out[:n], self._source.request(start, start + n))
            else:
                first = start - self._start(i)
                np.copyto(out[:n], task.result()[first : first + n])
            start, out = start + n, out[n:]

    def held(self, start: int) -> Bytes | None:
        """The bytes from `start` to the end of a block that is there."""
        i = (start - self.start) // self._block
        with self._lock:
            task = self._blocks.get(i)
        return task.result()[start - self._start(i) :] if task is not None and task.done else None

    def _start(self, i: int) -> int:
        return self.start + i * self._block

    def _stop(self, i: int) -> int:
        return min(self._start(i + 1), self.stop)

    def _wanted(self, i: int) -> Task[Bytes] | None:
        """A block, after which others are asked for. ``None`` of one that is not yet due."""
        with self._lock:
            if i > self._last + self._most_ahead:
                return None
            task = self._ask(i)
            self._blocks.move_to_end(i)
            if self._last < i <= self._last + _STRIDE:
                self._last = i
                for k in range(i + 1, i + 1 + self._most_ahead):
                    if self._start(k) < self.stop:
                        self._ask(k)
            used = [k for k in self._blocks if k <= self._last and k != i]
            for k in used[: max(0, len(self._blocks) - self._most)]:
                del self._blocks[k]
            return task

    def _ask(self, i: int) -> Task[Bytes]:
        if i not in self._blocks:
            self._blocks[i] = self._source.begin(self._start(i), self._stop(i))
        return self._blocks[i]

    def end(self) -> None:
        """Nothing more is read; requests that have not been made are not made."""
        with self._lock:
            blocks, self._blocks = list(self._blocks.values()), OrderedDict()
        for task in reversed(blocks):
            task.settle()


def _run_if_held(task: ref[Task[Bytes]]) -> None:
    """Make a request. What waits for a thread holds no bytes: who wants them may have read them."""
    held = task()
    if held is not None:
        held.run()


def _array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


class _Span(NamedTuple):
    """A request, and the ranges that have bytes in it: where they start, and what they fill."""

    start: int
    stop: int
    parts: list[tuple[int, Bytes]]


def _joined(asked: list[tuple[int, Bytes]], block: int) -> Iterator[_Span]:
    """Requests for ranges: those near each other become one, and a large one becomes several."""
    spans = list[_Span]()
    for start, out in sorted(asked, key=lambda one: one[0]):
        stop = start + out.size
        if spans and start - spans[-1].stop <= GAP_NBYTES:
            a, b, parts = spans[-1]
            spans[-1] = _Span(a, max(b, stop), [*parts, (start, out)])
        else:
            spans.append(_Span(start, stop, [(start, out)]))
    for first, last, parts in spans:
        for a in range(first, last, block):
            b = min(a + block, last)
            yield _Span(a, b, [p for p in parts if p[0] < b and a < p[0] + p[1].size])


def _fill(span: _Span, task: Task[Bytes]) -> None:
    """Put what a request gives where it is wanted."""
    data, (a, b, parts) = task.result(), span
    for start, out in parts:
        first, last = max(a, start), min(b, start + out.size)
        np.copyto(out[first - start : last - start], data[first - a : last - a])
