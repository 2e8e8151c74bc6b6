"""Many tensors of a file decoded at once, into memory that is there: a piece of a tensor a thread,
small tensors beside each other.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.checks import check_tensor
from wcodec.codec.decoder import Decoder
from wcodec.codec.parts import Rectangle, rectangle
from wcodec.codec.sources import FileSource, StreamSource
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.processes import Lock, Task, Workers
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.container import ByteSource
from wcodec.reference.differences import BaseTensor
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import chunks
from wcodec.torch import dtypes

#: words that a thread decodes at once: enough to be worth a call, little enough to share out
PIECE_NBYTES: Final = 1 << 23
AHEAD_NBYTES: Final = 1 << 26  #: of the file that are read before they are wanted
#: tensors from that size on are given huge pages: a fault for each small one costs more than
#: decoding
HUGE_NBYTES: Final = 1 << 22

#: a tensor that is no duplicate, and a C-contiguous array of its shape and dtype
Target = tuple[TensorRecord, NDArray[Any]]


# ---- memory --------------------------------------------------------------------------------------
def empty(t: TensorRecord) -> torch.Tensor:
    """A new CPU tensor for what a record describes.

    Raises
    ------
    DecodeError
        ``resource_limit``
    """
    try:
        out = torch.empty(t.shape, dtype=dtypes.torch_dtype(t.dtype))
    except (RuntimeError, MemoryError):  # PyTorch's allocator raises the first
        raise DecodeError(
            "resource_limit", f"there is no memory for {t.nbytes} bytes", tensor=t.name
        ) from None
    _want_huge_pages(out.data_ptr(), t.nbytes)
    return out


@lru_cache(maxsize=1)
def _madvise() -> Any:
    if not (sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function


def _want_huge_pages(address: int, nbytes: int) -> None:
    """Ask for huge pages. Advice, as NumPy gives it for its arrays:
    where the system takes none, all goes on without.
    """
    madvise = _madvise()
    if madvise is not None and nbytes >= HUGE_NBYTES:
        page = mmap.PAGESIZE
        start, end = -(-address // page) * page, (address + nbytes) // page * page
        madvise(start, end - start, mmap.MADV_HUGEPAGE)


# ---- decoding ------------------------------------------------------------------------------------
class _Tensor(NamedTuple):
    """A tensor to decode: its plan, words and base."""

    record: TensorRecord
    plan: SegmentPlan
    matrix: Words
    base: BaseTensor | None


class _Piece(NamedTuple):
    """What a thread decodes at once, and where its records are in the file."""

    tensor: _Tensor
    place: Rectangle
    start: int
    stop: int


def decode_into(file: File, targets: Iterable[Target]) -> None:
    """Decode tensors, checked against all their CRC-32s.

    A backend that computes on the CPU gets as many threads as it has, each with pieces of its own;
    others get one tensor at a time.

    Raises
    ------
    DecodeError
    """
    backend = file.decoder.backend
    n_threads = (backend.threads or _n_cores()) if backend.at_once == 0 else 1
    with file.checked():
        _decode_into(file, targets, n_threads)


def _decode_into(file: File, targets: Iterable[Target], n_threads: int) -> None:
    if n_threads == 1:
        for t, out in targets:
            file.decoder.tensor(file.source, t, file.index.tables, out, file.base_of(t))
        return
    others = list[Target]()
    for t, out in targets:
        if t.lists is None:
            others.append((t, out))
        else:  # in the threads of the backend
            file.decoder.tensor(file.source, t, file.index.tables, out, file.base_of(t))
    tensors = [_tensor(file, *target) for target in others]
    pieces = [piece for tensor in tensors for piece in _pieces(tensor)]
    crcs = _decode(file, pieces, min(n_threads, len(pieces)))
    of_tensors = dict.fromkeys(map(id, tensors), 0)
    for piece, (crc, nbytes) in zip(pieces, crcs, strict=True):
        of_tensors[id(piece.tensor)] = crc32_combine(of_tensors[id(piece.tensor)], crc, nbytes)
    for tensor in tensors:
        check_tensor(tensor.record, of_tensors[id(tensor)])


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def _of_one_thread(backend: type[Backend]) -> Backend:
    """A backend whose calls stay in the thread that makes them."""
    return backend(1)


def _tensor(file: File, t: TensorRecord, out: NDArray[Any]) -> _Tensor:
    matrix = (
        out.reshape(-1)
        .view(np.uint8)
        .view(t.dtype.word_type)
        .reshape(t.geometry.rows, t.geometry.cols)
    )
    return _Tensor(t, t.plan(file.index.tables), matrix, file.base_of(t))


def _pieces(tensor: _Tensor) -> Iterator[_Piece]:
    t = tensor.record
    n_across, offsets = t.geometry.grid[1], tensor.plan.offsets
    for down, across in chunks(t.geometry, t.dtype.word_nbytes, PIECE_NBYTES):
        first = int(down[0]) * n_across + int(across[0])
        last = int(down[-1]) * n_across + int(across[-1])
        ends = t.payload_offset + int(offsets[first]), t.payload_offset + int(offsets[last + 1])
        yield _Piece(tensor, rectangle(t.geometry, down, across), *ends)


def _decode(file: File, pieces: list[_Piece], n_threads: int) -> list[tuple[int, int]]:
    """CRC-32 and bytes of the words of each piece, decoded."""
    decoder, turns = Decoder(_of_one_thread(type(file.decoder.backend))), count()
    sums, failed = [(0, 0)] * len(pieces), dict[int, BaseException]()

    def work() -> None:
        nonlocal turns
        while (i := next(turns)) < len(pieces):
            (t, plan, matrix, base), place, *_ = pieces[i]
            out = matrix[place.rows, place.cols]
            try:
                sums[i] = (
                    decoder.grid(ahead.source(i), t, plan, place.down, place.across, out, base),
                    out.nbytes,
                )
            except BaseException as e:
                failed[i], turns = e, count(len(pieces))  # nobody begins another piece

    is_stream = isinstance(file.source, StreamSource)
    ahead = (_ThreadReadAhead if is_stream else _SystemReadAhead)(file, pieces)
    with closing(ahead), Workers(n_threads - 1, "wcodec-load") as workers:
        helpers = [workers.begin(work) for _ in range(n_threads - 1)]
        try:
            work()  # the caller's thread takes part
        finally:
            turns = count(len(pieces))
            for helper in helpers:
                helper.settle()
    if failed:
        raise failed[min(failed)]
    return sums


# ---- reading ahead -------------------------------------------------------------------------------
class _ReadAhead(ABC):
    """Reads a file before threads want it: they would wait for the disk, and the disk for them."""

    def __init__(self, file: File, pieces: list[_Piece]) -> None:
        self._file, self._pieces, self._next, self._lock = file, pieces, 0, Lock()

    def source(self, i: int) -> ByteSource:
        """What to read piece `i` from; begins to read what follows it."""
        end = self._pieces[i].stop + AHEAD_NBYTES
        with self._lock:
            while self._next < len(self._pieces) and (
                self._next <= i or self._pieces[self._next].start < end
            ):
                self._begin(self._next)
                self._next += 1
        return self._source(i)

    @abstractmethod
    def _begin(self, i: int) -> None:
        """Begin to read piece `i`."""

    @abstractmethod
    def _source(self, i: int) -> ByteSource:
        """What to read piece `i` from, once that has begun."""

    def close(self) -> None:
        """Stop reading."""


class _SystemReadAhead(_ReadAhead):
    """The system reads a file: it is told what will be wanted."""

    def _begin(self, i: int) -> None:
        source = self._file.source
        if isinstance(source, FileSource):
            source.will_need(self._pieces[i].start, self._pieces[i].stop - self._pieces[i].start)

    def _source(self, i: int) -> ByteSource:
        return self._file.source


class _ThreadReadAhead(_ReadAhead):
    """A thread reads a file object, and threads that decode take what it has read."""

    def __init__(self, file: File, pieces: list[_Piece]) -> None:
        super().__init__(file, pieces)
        self._worker = Workers(1, "wcodec-read")
        self._coming = dict[int, Task[Bytes]]()

    def _begin(self, i: int) -> None:
        start, stop = self._pieces[i].start, self._pieces[i].stop
        self._coming[i] = self._worker.begin(self._file.source.read, start, stop - start)

    def _source(self, i: int) -> ByteSource:
        return _Coming(self._pieces[i], self._coming.pop(i))

    def close(self) -> None:
        for task in self._coming.values():
            task.settle()
        self._worker.close()


class _Coming(ByteSource):
    """The bytes of one piece, as soon as they are there."""

    def __init__(self, piece: _Piece, data: Task[Bytes]) -> None:
        self._start, self._data, self.nbytes = piece.start, data, piece.stop

    def read(self, offset: int, nbytes: int) -> Bytes:
        """As of the file, within the piece. Raises what reading it raised."""
        return self._data.result()[offset - self._start : offset - self._start + nbytes]
