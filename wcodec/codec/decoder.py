"""From a file to arrays: container, kernels, checks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend, get_backend
from wcodec.codec.buffers import Buffers, memory_for
from wcodec.codec.checks import check_segments, check_tensor
from wcodec.codec.parts import (
    Ids,
    Part,
    Rectangle,
    part_of,
    rectangles,
    runs,
    runs_of_records,
)
from wcodec.codec.pipelining import map_ahead
from wcodec.codec.sources import BufferSource, reading_on
from wcodec.codec.sparse import add_lists
from wcodec.codec.working import PIECE_NBYTES, STREAM_NBYTES, working_nbytes
from wcodec.errors import DecodeError
from wcodec.reference import container
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.container import ByteSource, Index
from wcodec.reference.differences import BaseTensor, Difference
from wcodec.reference.memory import Memory, nbytes_of
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry


def _max_memory() -> int | None:
    text = os.environ.get("WCODEC_MAX_MEMORY")
    return nbytes_of(text) if text else None


class Decoder:
    """Decodes tensors of any number of files with the same backend and buffers.

    Parameters
    ----------
    backend
        ``None`` for the one of `get_backend`.
    max_nbytes
        Refuse files whose tensors decode to more bytes than that.
    max_memory
        Refuse files for whose index and decoding more bytes of memory would be needed, besides the
        arrays that the caller gets; ``None`` for the environment variable ``WCODEC_MAX_MEMORY``,
        or 4 GiB for the index alone.

    Raises
    ------
    ValueError
        ``WCODEC_MAX_MEMORY`` is no number.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        max_nbytes: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.backend, self.max_nbytes = backend or get_backend(), max_nbytes
        self.max_memory = _max_memory() if max_memory is None else max_memory
        self.buffers = Buffers(self.backend)

    def read_index(self, source: ByteSource, memory: Memory | None = None) -> Index:
        """Read and check all of a file but the payload.

        Parameters
        ----------
        memory
            What was taken before, for other files that are kept open with this one.

        Raises
        ------
        DecodeError
            As `wcodec.reference.container.read_index`; ``resource_limit`` above `max_nbytes` or
            `max_memory`.
        """
        backend, memory = self.backend, memory or Memory(self.max_memory)
        index = container.read_index(source, backend.read_tables, backend.check_plan, memory)
        check_nbytes(index.data_nbytes, self.max_nbytes)
        if self.max_memory is not None:
            memory.check(working_nbytes(index, backend), "the buffers to decode it")
        return index

    def decode(self, data: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The array of a file of one tensor. See `decode`."""
        source = BufferSource(data)
        index = self.read_index(source)
        if len(index.tensors) != 1:
            raise DecodeError(
                "bad_range",
                f"this file holds {len(index.tensors)} tensors, not one: use load_file or open",
            )
        return self.tensor(source, index.tensors[0], index.tables, out)

    def tensor(
        self,
        source: ByteSource,
        t: TensorRecord,
        tables: TablePool,
        out: NDArray[Any] | None = None,
        base: BaseTensor | None = None,
    ) -> NDArray[Any]:
        """A whole tensor, checked against its CRC-32.

        Parameters
        ----------
        out
            C-contiguous array of the tensor's shape and dtype to decode into;
            ``None`` for a new one.
        base
            The tensor that one with a difference differs from.

        Raises
        ------
        DecodeError
        ValueError
            `out` has another shape or dtype, or is not contiguous.
        """
        _check_base(t, base)
        if out is None:
            with memory_for(t.nbytes, t.name):
                out = np.empty(t.shape, t.dtype.numpy)
        elif (
            out.shape != t.shape
            or out.dtype != t.dtype.numpy
            or not out.flags.c_contiguous
            or not out.flags.writeable
            or isinstance(out, np.ma.MaskedArray)  # whose mask would hide what is decoded
        ):
            raise ValueError(
                f"out must be a writeable C-contiguous {t.dtype.name} array of shape {t.shape}"
            )
        matrix = (
            out.reshape(-1)
            .view(np.uint8)
            .view(t.dtype.word_type)
            .reshape(t.geometry.rows, t.geometry.cols)
        )
        plan = t.plan(tables)
        if t.nbytes <= PIECE_NBYTES:
            check_tensor(t, self.whole(source, t, plan, matrix, base))
            return out

        def decode_in_place(piece: Rectangle) -> tuple[int, int]:
            chunk = matrix[piece.rows, piece.cols]
            return self.grid(source, t, plan, piece.down, piece.across, chunk, base), chunk.nbytes

        crc, pieces = 0, rectangles(t, PIECE_NBYTES)
        with _reading_on(source, t):
            for part, nbytes in map_ahead(decode_in_place, pieces, self.backend.at_once):
                crc = crc32_combine(crc, part, nbytes)
        check_tensor(t, crc)
        return out

    def chunks(
        self, source: ByteSource, t: TensorRecord, tables: TablePool, base: BaseTensor | None = None
    ) -> Iterator[Words]:
        """The words of a tensor in order, a chunk at a time. A chunk is overwritten `CHUNK_BUFFERS`
        chunks later. Raises as `tensor`.
        """
        _check_base(t, base)
        crc, plan = 0, t.plan(tables)

        def decode_chunk(piece: tuple[Rectangle, Bytes]) -> tuple[int, Words]:
            place, buffer = piece
            chunk = buffer.view(t.dtype.word_type).reshape(place.shape)
            return self.grid(source, t, plan, place.down, place.across, chunk, base), chunk

        with self.buffers.ring() as ring, _reading_on(source, t):
            pieces = (
                (r, ring.next(math.prod(r.shape) * t.dtype.word_nbytes, t.name))
                for r in rectangles(t, STREAM_NBYTES)
            )
            for part, chunk in map_ahead(decode_chunk, pieces, self.backend.at_once):
                crc = crc32_combine(crc, part, chunk.nbytes)
                yield chunk
            check_tensor(t, crc)

    def grid(
        self,
        source: ByteSource,
        t: TensorRecord,
        whole: SegmentPlan,
        down: Ids,
        across: Ids,
        out: Words,
        base: BaseTensor | None = None,
    ) -> int:
        """Decode the segments of some segment rows and columns into `out`, which they fill; reads
        no others. `whole` is the tensor's plan.

        Returns
        -------
        CRC-32 of `out`.

        Raises
        ------
        DecodeError
            ``bad_checksum`` of a segment, ``bad_stream``, ``bad_patch``, ``unsupported_coder``;
            ``bad_base``: it is missing.
        """
        _check_base(t, base)
        if down.size == 0 or across.size == 0:
            return 0
        if t.lists is not None and base is not None:
            return self._sparse(source, t, whole.tables, across, out, base)
        return self.part(source, t, part_of(t, whole, down, across), out, base)

    def _sparse(
        self,
        source: ByteSource,
        t: TensorRecord,
        tables: TablePool,
        across: Ids,
        out: Words,
        base: BaseTensor,
    ) -> int:
        """As `grid`, of a sparse tensor: the base's words, of which some are put in again."""
        backend, row = self.backend, np.zeros(1, np.int64)
        if not out.flags.aligned:
            aside = np.empty(out.shape, out.dtype)
            crc = self._sparse(source, t, tables, across, aside, base)
            np.copyto(out, aside)
            return crc
        words = _base_words(t.geometry, row, across, base, out)
        if words is not out:
            np.copyto(out, words)
        device = backend.to_device(out)
        add_lists(self.buffers, source, t, tables, across, device)
        if device is not out:
            backend.to_host(device, out)
        return backend.crc32(out)

    def whole(
        self,
        source: ByteSource,
        t: TensorRecord,
        plan: SegmentPlan,
        out: Words,
        base: BaseTensor | None = None,
    ) -> int:
        """As `grid`, of all segments at once."""
        if t.difference != Difference.NONE or out.size == 0:
            down, across = (np.arange(n) for n in t.geometry.grid)
            return self.grid(source, t, plan, down, across, out, base)
        backend, device = self.backend, self.backend.target(out)
        with self.buffers.records(
            source, [(t.payload_offset, t.payload_nbytes)], t.name
        ) as records:
            payload = backend.to_device(records)
            status, sums = backend.decode_with_checksums(plan, payload, device)
        right = sums.records.tobytes() == t.segment_crc32.tobytes()
        if not right or any(status.tobytes()):
            starts = plan.offsets[:-1] + t.payload_offset
            check_segments(t, np.arange(status.size), starts, status, sums.records)
        if device is not out:
            backend.to_host(device, out)
        return sums.words

    def part(
        self,
        source: ByteSource,
        t: TensorRecord,
        part: Part,
        out: Words,
        base: BaseTensor | None = None,
    ) -> int:
        """As `grid`, of a part that was planned before:
        who decodes it again and again spares that.
        """
        backend, device = self.backend, self.backend.target(out)
        where = runs_of_records(part.starts, part.plan.offsets)
        with self.buffers.records(source, where, t.name) as records:
            payload = backend.to_device(records)
            status, sums = backend.decode_with_checksums(part.plan, payload, device)
        check_segments(t, part.ids, part.starts, status, sums.records)
        crc = sums.words
        if base is not None and t.difference != Difference.NONE:
            with self.buffers.spare(out.nbytes, t.name) as room:
                other = _base_words(
                    t.geometry,
                    part.down,
                    part.across,
                    base,
                    room.view(out.dtype).reshape(out.shape),
                )
                crc = backend.add_base(device, backend.to_device(other), t.difference)
        if device is not out:
            backend.to_host(device, out)
        return crc


def _reading_on(source: ByteSource, t: TensorRecord) -> AbstractContextManager[None]:
    return reading_on(source, t.payload_offset, t.payload_offset + t.payload_nbytes)


def check_nbytes(nbytes: int, most: int | None) -> None:
    """Compare the bytes of all tensors with what the caller allows, if that is said.

    Raises
    ------
    DecodeError
        ``resource_limit``
    """
    if most is not None and nbytes > most:
        raise DecodeError(
            "resource_limit",
            f"the tensors have {nbytes} bytes; {most} are allowed: max_nbytes (--max-nbytes) "
            "allows more",
        )


def _check_base(t: TensorRecord, base: BaseTensor | None) -> None:
    if t.difference != Difference.NONE and base is None:
        raise DecodeError(
            "bad_base", "the tensor is a difference from a base, which is not given", tensor=t.name
        )


def _base_words(geometry: Geometry, down: Ids, across: Ids, base: BaseTensor, room: Words) -> Words:
    """The base's words of some segment rows and columns: in `room`, or where they lie."""
    runs_down = runs(down, geometry.segment_rows, geometry.rows)
    runs_across = runs(across, geometry.segment_cols, geometry.cols)
    if len(runs_down) == len(runs_across) == 1:
        return base.words(runs_down[0], runs_across[0], room)
    r = 0
    for rows in runs_down:
        height, c = rows.stop - rows.start, 0
        for cols in runs_across:
            width = cols.stop - cols.start
            room[r : r + height, c : c + width] = base.words(
                rows, cols, np.empty((height, width), room.dtype)
            )
            c += width
        r += height
    return room
