"""Memory that the backend keeps from call to call: what threads need besides inputs and outputs,
and payloads that were given out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from wcodec.backends.numba import common_segments as common
from wcodec.backends.numba import merge, split
from wcodec.backends.numba.rans import Work
from wcodec.reference import entropy
from wcodec.reference.planes import Bytes

KEPT_LOANS: Final = 4  #: payloads whose memory is kept
KEPT_NBYTES: Final = 1 << 26  #: larger scratch is not kept
KEPT_LOAN_NBYTES: Final = 1 << 28  #: larger payloads are not kept


class Scratch:
    """What one thread needs besides inputs and outputs. Grows on demand."""

    def __init__(self) -> None:
        self.planes, self.side, self.stream_words = (
            np.empty(0, np.uint8),
            np.empty(0, np.uint8),
            np.empty(0, np.uint16),
        )
        self.four, self.addresses, self.streams = (
            np.empty(4 * 256, np.uint32),
            np.empty(16, np.int64),
            Work(),
        )
        self.split = np.zeros(split.N_PARAMS + 8, np.int64)
        self.symbols = np.zeros((2, common.BLOCK * entropy.GROUP), np.uint8)
        self.merging, self.lanes = (
            np.zeros((2, merge.N_PARAMS), np.int64),
            np.zeros((2, merge.LANES_NBYTES), np.uint8),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that grow."""
        return (
            self.planes.nbytes
            + self.side.nbytes
            + self.stream_words.nbytes
            + self.streams.spare.nbytes
        )

    def grow(self, n_planes: int, room: int, encoding: bool = False) -> None:
        """Make room for planes `room` apart, and for encoding two streams of such planes."""
        if self.planes.size < n_planes * room:
            self.planes = np.empty(n_planes * room, np.uint8)
        if encoding and self.stream_words.size < 2 * (room + 16):
            self.stream_words = np.empty(2 * (room + 16), np.uint16)

    def grow_side(self, room: int, shape: tuple[int, int, int, int], width: int) -> Bytes:
        """Room for the words of a segment, if tiles are narrower than segments of that width."""
        nbytes = room * shape[3] if shape[2] < width else 0
        if self.side.size < nbytes:
            self.side = np.empty(nbytes, np.uint8)
        return self.side


@contextmanager
def borrow_scratch(free: list[Scratch]) -> Iterator[Scratch]:
    """Scratch that no one else uses meanwhile."""
    try:
        scratch = free.pop()
    except IndexError:
        scratch = Scratch()
    yield scratch
    if scratch.nbytes <= KEPT_NBYTES:
        free.append(scratch)


class Memory:
    """Memory of an array, for `np.asarray`."""

    def __init__(self, array: Bytes, nbytes: int | None = None) -> None:
        self.array = array  # NumPy keeps this object, which keeps the memory
        address, n = array.__array_interface__["data"][0], array.size if nbytes is None else nbytes
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (n,),
            "data": (address, False),
        }


class Loans:
    """Memory for payloads, taken back when nobody looks at it any more: new pages cost as much as
    coding.
    """

    def __init__(self) -> None:
        self.free: list[Bytes] = []

    def borrow(self, nbytes: int) -> Memory:
        """Memory of that size."""
        try:
            array = self.free.pop()
        except IndexError:
            array = np.empty(0, np.uint8)
        if array.size < nbytes:
            array = np.empty(nbytes, np.uint8)
        memory = Memory(array, nbytes)
        weakref.finalize(memory, self._take_back, array).atexit = False
        return memory

    def _take_back(self, array: Bytes) -> None:
        if len(self.free) < KEPT_LOANS and array.size <= KEPT_LOAN_NBYTES:
            self.free.append(array)
