"""Memory that compressed weights are decoded into, and the thread that decodes the next one ahead.

One set of buffers serves all models of the process on a device: a weight is decoded, used, and its
buffer handed on. While one weight is in use, the one that came after it the last time is decoded
by a thread (CPU) or on a stream of its own (GPU).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, Protocol

import torch

from wcodec.backends import get_backend
from wcodec.processes import Lock, Workers, call_in_child

KEPT: Final = 2  #: buffers that are kept for the next weights: one in use, one being decoded ahead
ROUND: Final = 1 << 16  #: buffers are a multiple of that


class Buffers:
    """Flat uint8 tensors on one device that are handed out and come back.

    Parameters
    ----------
    device
        Where.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._free, self._lock = device, list[torch.Tensor](), Lock()

    def take(self, nbytes: int) -> torch.Tensor:
        """A buffer of at least so many bytes that nobody else has."""
        with self._lock:
            fits = [b for b in self._free if b.numel() >= nbytes]
            best = min(fits, key=torch.Tensor.numel, default=None)
            if best is None and self._free:
                # too small: it goes before a larger one comes
                best = max(self._free, key=torch.Tensor.numel)
            if best is not None:
                self._free = [b for b in self._free if b is not best]
            if fits:
                assert best is not None
                return best
        del best
        return self._new(-(-max(nbytes, 1) // ROUND) * ROUND)

    def _new(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def give(self, buffer: torch.Tensor) -> None:
        """Hand a buffer back, which nobody uses any more."""
        with self._lock:
            self._free = sorted([*self._free, buffer], key=torch.Tensor.numel)[-KEPT:]

    def clear(self) -> None:
        """Let go of all that is not in use."""
        with self._lock:
            self._free = []

    @property
    def nbytes(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(b.numel() for b in self._free)


class Decodable(Protocol):
    """A weight that can be decoded into a buffer."""

    nbytes: int
    version: int  #: goes up when its content changes
    successor: weakref.ref[Any] | None  #: what was decoded after it the last time

    def decode_into(self, buffer: torch.Tensor) -> None:
        """Fill the first `nbytes` bytes."""


class Prefetcher:
    """Decodes weights into buffers, and guesses which one is next: the one that was the last time.

    Parameters
    ----------
    buffers
        Where to.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers, self._lock = buffers, Lock()
        self._last: weakref.ref[Any] | None = None
        self._pending: tuple[weakref.ref[Any], int, Future[torch.Tensor]] | None = None
        self._workers = Workers(1, "wcodec-next")

    def decoded(self, held: Decodable) -> torch.Tensor:
        """A buffer that starts with the decoded weight; to be given back.
        Starts to decode the next one.

        Raises
        ------
        DecodeError
        """
        with self._lock:
            pending, self._pending = self._pending, None
            self._follow(held)
        buffer = None
        if pending is not None:
            of, version, future = pending
            if of() is held and version == held.version:
                with contextlib.suppress(CancelledError):  # by `clear`
                    buffer = future.result()
            else:
                _when_done(future, self.buffers.give)
        if buffer is None:
            buffer = self._decode(held)
        self._start_next(held)
        return buffer

    def _follow(self, held: Decodable) -> None:
        """Note which weight comes after which; with the lock held."""
        last, self._last = self._last, weakref.ref(held)
        before = None if last is None else last()
        if before is not None and before is not held:
            before.successor = weakref.ref(held)

    def _decode(self, held: Decodable) -> torch.Tensor:
        buffer = self.buffers.take(held.nbytes)
        held.decode_into(buffer)
        return buffer

    def _start_next(self, held: Decodable) -> None:
        following = None if held.successor is None else held.successor()
        if following is None or following is held or get_backend().threads == 1:
            return
        with self._lock:
            if self._pending is None:
                scope = contextvars.copy_context()  # which backend the caller has chosen
                self._pending = (
                    weakref.ref(following),
                    following.version,
                    self._workers.submit(scope.run, self._decode, following),
                )

    def clear(self) -> None:
        """Let go of what was decoded ahead, and of the thread."""
        with self._lock:
            pending, self._pending, self._last = self._pending, None, None
        if pending is not None:
            _when_done(pending[2], self.buffers.give)
        self._workers.close()


def _when_done(future: Future[torch.Tensor], give: Callable[[torch.Tensor], None]) -> None:
    """Hand back the buffer of a guess that was wrong;
    what went wrong with it will be met when its weight is used.
    """

    def finish(done: Future[torch.Tensor]) -> None:
        if not done.cancelled() and done.exception() is None:
            give(done.result())

    if not future.cancel():
        future.add_done_callback(finish)


#: Makes the prefetcher of a device, by its type; `Prefetcher` where nothing is said. Who holds
#: weights there says it.
PREFETCHER_OF_TYPE: Final[dict[str, Callable[[torch.device], Prefetcher]]] = {}

_prefetchers: Final[dict[torch.device, Prefetcher]] = {}
_tiles: Final[dict[torch.device, Buffers]] = {}
_lock: Final = Lock()


def _forget() -> None:
    """In a process that was forked: threads stayed behind, and what they had under way."""
    _prefetchers.clear()
    _tiles.clear()


call_in_child(_forget)


def prefetcher_of(device: torch.device) -> Prefetcher:
    """The prefetcher of a device, which all weights there share."""
    with _lock:
        if device not in _prefetchers:
            make = PREFETCHER_OF_TYPE.get(device.type)
            _prefetchers[device] = Prefetcher(Buffers(device)) if make is None else make(device)
        return _prefetchers[device]


def tile_buffers(device: torch.device) -> Buffers:
    """Memory for parts of weights that are multiplied as they are decoded; apart from that for
    whole ones, which is much larger.
    """
    with _lock:
        return _tiles.setdefault(device, Buffers(device))


def release_scratch() -> None:
    """Give back the memory that compressed weights are decoded into;
    it is taken anew when one is used.
    """
    with _lock:
        some, tiles = list(_prefetchers.values()), list(_tiles.values())
    for buffers in tiles:
        buffers.clear()
    for prefetcher in some:
        prefetcher.clear()
        prefetcher.buffers.clear()


def scratch_nbytes() -> int:
    """Bytes that are kept to decode weights into, on all devices,
    of buffers that are not in use.
    """
    with _lock:
        return sum(
            b.nbytes for b in [*(p.buffers for p in _prefetchers.values()), *_tiles.values()]
        )


def return_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps that of dense weights of up to 32 MB, which
    may be as much as the model.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
