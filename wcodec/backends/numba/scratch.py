"""Memory that the backend keeps from call to call.

What threads need besides inputs and outputs, and the memory of payloads that were given out.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from wcodec.backends.numba import checksums, common_decoding, merge, split, table_lookups
from wcodec.backends.numba.arguments import Rooms
from wcodec.backends.numba.kernels import Packed
from wcodec.backends.numba.rans import ENCODING_ROWS, StreamScratch
from wcodec.backends.numba.rans_vectors import TOGETHER
from wcodec.reference.planes import Bytes
from wcodec.reference.rans import GROUP

KEPT_LOANS: Final = 4  #: payloads whose memory is kept
KEPT_NBYTES: Final = 1 << 26  #: larger scratch is not kept
KEPT_LOAN_NBYTES: Final = 1 << 28  #: larger payloads are not kept


class Scratch:
    """What one thread needs besides inputs and outputs. Grows on demand."""

    def __init__(self) -> None:
        self.rooms, self.words = np.empty(0, np.uint8), np.empty(0, np.uint8)
        self.stream_words, self.addresses = np.empty(0, np.uint16), np.empty(16, np.int64)
        self.streams = StreamScratch(table_lookups.choice().name == table_lookups.GATHER)
        self.four = Packed(np.empty(4 * 256, np.uint32))  # counts
        self.splitting = Packed(np.zeros(1, split.SPLIT))
        self.merges = np.zeros(TOGETHER, merge.MERGE)
        self.merging = Packed(
            common_decoding.Merging(
                self.merges,
                np.zeros((TOGETHER, common_decoding.BLOCK * GROUP), np.uint8),
                np.zeros((TOGETHER, merge.LANES_NBYTES), np.uint8),
            )
        )
        self.rest = Packed(np.empty(checksums.REST_NBYTES, np.uint8))
        self._rooms: tuple[tuple[int, ...], Packed] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that grow."""
        return (
            self.rooms.nbytes
            + self.words.nbytes
            + self.stream_words.nbytes
            + self.streams.spare.nbytes
        )

    def take_rooms(
        self, n: int, nbytes: int, words_nbytes: int = 0, encoding: bool = False
    ) -> Packed:
        """The rooms (`Rooms`).

        Parameters
        ----------
        n, nbytes
            Rooms, and bytes of each.
        words_nbytes
            Bytes for the words of a segment, 0 if none are needed.
        encoding
            Whether streams of such planes are encoded.
        """
        if self.rooms.size < n * nbytes:
            self.rooms = np.empty(n * nbytes, np.uint8)
        if self.words.size < words_nbytes:
            self.words = np.empty(words_nbytes, np.uint8)
        if encoding and self.stream_words.size < ENCODING_ROWS * (nbytes + 16):
            self.stream_words = np.empty(ENCODING_ROWS * (nbytes + 16), np.uint16)
        key = self.rooms.size, nbytes, self.words.size, self.stream_words.size
        if self._rooms is None or key != self._rooms[0]:
            rooms = Rooms(self.rooms, nbytes, self.words, self.addresses, self.stream_words)
            self._rooms = key, Packed(rooms)
        return self._rooms[1]


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
