"""Memory to decode in, which is used again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from wcodec.backends import Backend
from wcodec.codec.parts import Runs, aligned, gather
from wcodec.codec.pipelining import CHUNK_BUFFERS
from wcodec.codec.working import PIECE_NBYTES, STREAM_NBYTES
from wcodec.errors import DecodeError
from wcodec.reference.container import ByteSource
from wcodec.reference.planes import Bytes
from wcodec.reference.tensors import TensorRecord


@contextmanager
def memory_for(nbytes: int, tensor: str) -> Iterator[None]:
    """Where memory is taken: what it means that there is none. Raises `DecodeError`."""
    try:
        yield
    except MemoryError:
        raise DecodeError(
            "resource_limit", f"there is no memory for {nbytes} bytes", tensor=tensor
        ) from None


class Ring:
    """Buffers that are handed out in turn."""

    def __init__(self, n: int) -> None:
        self._buffers, self._turn = [np.empty(0, np.uint8)] * n, 0

    def next(self, nbytes: int, tensor: str) -> Bytes:
        """Memory that is handed out again when all others have been."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._buffers[self._turn].size < nbytes:
            with memory_for(nbytes, tensor):
                self._buffers[self._turn] = np.empty(nbytes, np.uint8)
        return self._buffers[self._turn][:nbytes]


class Buffers:
    """What the threads that decode with a backend take and give back."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._rings, self._spares = list[Ring](), list[Bytes]()

    @contextmanager
    def ring(self) -> Iterator[Ring]:
        """Buffers for chunks, nobody else's meanwhile."""
        try:
            ring = self._rings.pop()
        except IndexError:
            ring = Ring(CHUNK_BUFFERS + max(0, self.backend.at_once - 1))
        yield ring
        self._rings.append(ring)

    def room(self, shape: tuple[int, int], t: TensorRecord) -> Any:
        """New memory of the device for words of a tensor."""
        with memory_for(math.prod(shape) * t.dtype.word_nbytes, t.name):
            return self.backend.target(np.empty(shape, t.dtype.word_type))

    @contextmanager
    def records(self, source: ByteSource, where: Runs, tensor: str) -> Iterator[Bytes]:
        """Records as `gather` gives them: where they lie, or read from a file into memory that is
        used again.
        """
        if not getattr(source, "is_read", False):
            yield aligned(gather(source, where))
            return
        with self.spare(sum(n for _, n in where), tensor, STREAM_NBYTES) as room:
            yield gather(source, where, room)

    @contextmanager
    def spare(self, nbytes: int, tensor: str, most: int = PIECE_NBYTES) -> Iterator[Bytes]:
        """Memory that nobody else uses meanwhile; `most` of it is kept for the next time."""
        try:
            room = self._spares.pop()
        except IndexError:
            room = np.empty(0, np.uint8)
        if room.size < nbytes:
            with memory_for(nbytes, tensor):
                room = np.empty(nbytes, np.uint8)
        yield room[:nbytes]
        if room.size <= most:
            self._spares.append(room)
