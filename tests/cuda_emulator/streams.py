"""Emulated devices with streams: work is put off, as a GPU may, until somebody waits for it."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import EmulatedRuntime, check_dtype


class _Stream:
    """Work in order."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()
        self.n_queued = self.n_done = 0
        self.lock = threading.RLock()

    def queue(self, work: Callable[[], None]) -> None:
        with self.lock:
            self.waiting.append(work)
            self.n_queued += 1

    def run_until(self, n: int) -> None:
        """Do the first `n` pieces of all work that was ever queued."""
        with self.lock:
            while self.n_done < n:
                work = self.waiting.popleft()
                self.n_done += 1
                work()


class _Mark:
    def __init__(self, stream: _Stream) -> None:
        self._stream, self._n = stream, stream.n_queued

    def synchronize(self) -> None:
        """Do all work up to here."""
        self._stream.run_until(self._n)


class LazyRuntime(EmulatedRuntime):
    """A device whose streams do nothing before they must, but for a piece of work now and then.

    Reading a result, or writing to a buffer that a copy still needs, without waiting for it gives
    wrong bytes here, as it may on a GPU. Without a stream of its own, a thread's work is done at
    once. Parameters as for `EmulatedRuntime`.
    """

    def __init__(self, device: int = 0, **how: Any) -> None:
        super().__init__(**how)
        self.device = device
        self._current, self._streams = threading.local(), list[_Stream]()
        self._random, self._lock = random.Random(how.get("seed", 0)), threading.Lock()

    def stream(self) -> _Stream:
        with self._lock:
            self._streams.append(_Stream())
            return self._streams[-1]

    @contextmanager
    def on(self, stream: _Stream) -> Iterator[_Stream]:
        before = getattr(self._current, "stream", None)
        self._current.stream = stream
        try:
            yield stream
        finally:
            self._current.stream = before

    def mark(self) -> _Mark:
        return _Mark(self._stream_here() or _Stream())

    def finish(self) -> None:
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.run_until(stream.n_queued)

    def wait_for(self, mark: _Mark) -> None:
        self._queue(mark.synchronize)

    def _stream_here(self) -> _Stream | None:
        stream: _Stream | None = getattr(self._current, "stream", None)
        return stream

    def _queue(self, work: Callable[[], None]) -> None:
        stream = self._stream_here()
        if stream is None:
            work()
            return
        stream.queue(work)
        with self._lock:
            chosen = self._random.choice(self._streams) if self._random.random() < 0.2 else None
        if chosen is not None and chosen.lock.acquire(blocking=False):
            try:
                chosen.run_until(min(chosen.n_done + 1, chosen.n_queued))
            finally:
                chosen.lock.release()

    # ---- work that can wait
    def upload(self, host: NDArray[Any]) -> NDArray[Any]:
        check_dtype(host)
        device: NDArray[Any] = self.empty(host.nbytes).view(host.dtype).reshape(host.shape)
        content = host.copy()
        self._queue(lambda: np.copyto(device, content))
        return device

    def copy_in(self, device: NDArray[Any], host: NDArray[np.uint8]) -> None:
        self._queue(lambda: np.copyto(device, host))

    def copy_out(self, host: NDArray[np.uint8], device: NDArray[Any]) -> None:
        self._queue(lambda: np.copyto(host, device))

    def copy_within(self, out: NDArray[Any], device: NDArray[Any]) -> None:
        self._queue(lambda: np.copyto(out, device))

    def launch(self, kernel: str, grid: int, block: int, *args: Any) -> None:
        run = super().launch
        self._queue(lambda: run(kernel, grid, block, *args))

    def download(self, device: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        stream = self._stream_here()
        if stream is not None:
            stream.run_until(stream.n_queued)
        return super().download(device, out)
