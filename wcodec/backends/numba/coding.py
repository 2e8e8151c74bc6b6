"""Calls of kernels: what they take is made once for all segments, and then used range by range."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import (
    common_decoding,
    common_encoding,
    contexts,
    jobs,
    merge,
    segments,
    split,
    words,
)
from wcodec.backends.numba.arguments import Counted, DecodingTables, Heads
from wcodec.backends.numba.checksums import Sums
from wcodec.backends.numba.jobs import Ints, Jobs
from wcodec.backends.numba.kernels import Native, Packed
from wcodec.backends.numba.kinds import GENERAL, WITH_CONTEXTS, common_kinds
from wcodec.backends.numba.rans import VECTOR_BITS
from wcodec.backends.numba.scratch import Scratch
from wcodec.backends.numba.tables import encoding_tables, fill_luts, frequencies
from wcodec.backends.protocol import DType, EncodedSegments, Geometry, SegmentPlan
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.rans import max_stream_nbytes
from wcodec.reference.segments import Coder, padded
from wcodec.reference.tables import MAX_PROB_BITS

_NO_BYTES: Final = np.empty(0, np.uint8)


def bytes_of(array: NDArray[Any]) -> Bytes:
    """The bytes of a contiguous array."""
    return array.reshape(-1).view(np.uint8)


def _checked(matrix: Words, geometry: Geometry, dtype: DType) -> Words:
    """A matrix of words, if it is what the kernels take for granted."""
    shape = geometry.rows, geometry.cols
    right_type = matrix.dtype == dtype.word_type and matrix.flags.c_contiguous
    if matrix.shape != shape or not right_type:
        due = f"a C-contiguous {dtype.word_type} array of shape {shape}"
        raise ValueError(f"{matrix.dtype} words of shape {matrix.shape} where {due} is due")
    return matrix


def _runs(kinds: Ints, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of segments of the same kind: first, last, kind."""
    cuts = first + 1 + np.flatnonzero(np.diff(kinds[first:last]))
    for start, end in pairwise([first, *cuts.tolist(), last]):
        yield start, end, int(kinds[start])


def _side_nbytes(geometry: Geometry, dtype: DType) -> int:
    """Room for the words of a segment, where tiles are narrower than it (`Rooms.words`)."""
    narrow = geometry.tile_cols < jobs.largest(geometry)[1]
    return jobs.plane_room(geometry) * dtype.word_nbytes if narrow else 0


def _used_modes(plan: SegmentPlan) -> set[int]:
    """All that is in the column of modes."""
    modes = plan.segments.prediction
    return set(np.flatnonzero(np.bincount(modes.reshape(-1))).tolist()) if modes.any() else set()


def _worst_nbytes(plan: SegmentPlan) -> Ints:
    """The most bytes that each segment's record can take."""
    s, size = plan.segments, plan.plane_nbytes
    raw = padded(size) * (s.coder == Coder.RAW.value)
    streams = np.where(plan.is_stream, max_stream_nbytes(size), raw)
    patches = padded(4 * plan.n_elements) * (plan.is_pairs & (plan.dtype.word_nbytes > 1))
    return np.asarray(
        plan.words_nbytes + plan.head_nbytes + streams.sum(axis=0) + patches, np.int64
    )


def all_sums(plan: SegmentPlan) -> Sums:
    """For all checksums."""
    g = plan.geometry
    width = max(1, min(g.segment_cols, g.cols))
    return Sums(g.n_segments, (g.rows, g.cols, width, plan.dtype.word_nbytes), True)


def no_sums() -> Sums:
    """For no checksum."""
    return Sums(0, (0, 1, 1, 1), False)


class Counting:
    """A call of `Backend.histogram`, whose parameters it takes. Fills `counts`."""

    def __init__(
        self,
        matrix: Words,
        geometry: Geometry,
        dtype: DType,
        ids: Ints | None,
        planes: tuple[int, ...] | None,
        mode: int,
        base: int | None,
        fill: int,
    ) -> None:
        pairs, word_nbytes = base is not None, dtype.word_nbytes
        nibbles = pairs and word_nbytes == 1
        numbers = range(2 if nibbles else word_nbytes) if planes is None else planes
        which, window = np.array(numbers, np.int64), -1 if base is None else base
        self.counted = Counted(which, mode, window, fill)
        self.records, self.mode = jobs.rectangles(geometry, ids), mode
        n_each = which.size + (pairs and not nibbles)
        self.counts = np.empty((len(self.records), n_each, 256), np.int64)
        height, width = jobs.largest(geometry)
        one_tile = height <= geometry.tile_rows and width <= geometry.tile_cols
        self.kind = common_kinds(dtype.id)[pairs] if one_tile else GENERAL
        if self.kind == GENERAL:
            native = words.splitter(word_nbytes)
        else:
            native = split.splitter(self.kind, nibbles or bool((which > 0).any()))
        data = bytes_of(_checked(matrix, geometry, dtype))
        self.matrix = jobs.matrix_of(Packed(data), geometry, dtype, native)
        self.n_rooms = common_encoding.SHARE + word_nbytes
        self.room, self.side = jobs.plane_room(geometry), _side_nbytes(geometry, dtype)
        n_words = min(len(self.records) * height * width, geometry.rows * geometry.cols)
        self.nbytes = n_words * word_nbytes  # at most

    def run(self, first: int, last: int, scratch: Scratch) -> None:
        """Count the segments of a range."""
        scratch.streams.need_transforms({self.mode})
        rooms = scratch.take_rooms(self.n_rooms, self.room, self.side)
        what = first, last, self.records, self.matrix, self.counted, rooms
        into = scratch.four, scratch.streams.natives, self.counts
        if self.kind == GENERAL:
            segments.histogram_range(*what, *into)
        else:
            common_encoding.histogram_range(*what, scratch.splitting, *into)


class Encoding:
    """A call of `Backend.encode_segments`."""

    def __init__(self, plan: SegmentPlan, matrix: Words, sums: Sums) -> None:
        of_plan, self.geometry, self.dtype = Jobs.of(plan, encoding=True), plan.geometry, plan.dtype
        self.records, self.kinds, used, _ = of_plan
        tables, words_of_entries = encoding_tables(used)
        common = np.flatnonzero(self.kinds > 0)
        numbers = self.records["planes"]["table"][common, 0]
        self.kinds[common[tables.prob_bits[numbers] < VECTOR_BITS]] = GENERAL
        self.tables = tables
        self.context_tables = tables._replace(entries=words_of_entries)
        self.maps, self.modes, self.sums = of_plan.context_maps(256), _used_modes(plan), sums
        modes, scales = (
            _NO_BYTES if part is None else bytes_of(part) for part in (plan.modes, plan.scales)
        )
        self.heads = Heads(modes, scales)
        self.data = bytes_of(_checked(matrix, plan.geometry, plan.dtype))
        self._packed = Packed(self.data)
        self.n_units = np.zeros((plan.dtype.n_planes, plan.geometry.n_segments), np.uint32)
        self.n_patches = np.zeros(plan.geometry.n_segments, np.uint32)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(_worst_nbytes(plan))])
        self.room, self.side = (
            jobs.plane_room(plan.geometry),
            _side_nbytes(plan.geometry, plan.dtype),
        )

    @property
    def worst_nbytes(self) -> int:
        """The most bytes that all records can take."""
        return int(self.starts[-1])

    def _matrix(self, native: Native) -> tuple[Any, ...]:
        return jobs.matrix_of(self._packed, self.geometry, self.dtype, native)

    def run(self, first: int, last: int, payload: Bytes, scratch: Scratch) -> tuple[int, int]:
        """Encode a range of segments, from where it would start in the payload at worst.

        Returns where its records start and end.
        """
        n_rooms, start = 2 * common_encoding.SHARE + self.dtype.word_nbytes, int(self.starts[first])
        rooms = scratch.take_rooms(n_rooms, self.room, self.side, encoding=True)
        scratch.streams.need_transforms(self.modes)
        shared, end = (scratch.streams.packed(), self.sums.arrays(scratch.rest)), start
        for a, b, kind in _runs(self.kinds, first, last):
            encoded = payload[end:], self.n_units, self.n_patches
            what = a, b, self.records
            if kind == GENERAL:
                matrix = self._matrix(words.splitter(self.dtype.word_nbytes))
                end += segments.encode_range(
                    *what, matrix, self.heads, self.tables, rooms, *shared, encoded
                )
            elif kind == WITH_CONTEXTS:
                scratch.streams.need_contexts()
                matrix = self._matrix(words.splitter(self.dtype.word_nbytes))
                tables = self.context_tables, self.maps
                end += contexts.encode_range(
                    *what, matrix, self.heads, *tables, rooms, *shared, encoded
                )
            else:
                matrix = self._matrix(split.splitter(kind, True))
                splitting = scratch.splitting
                end += common_encoding.encode_range(
                    *what, matrix, self.tables, rooms, splitting, *shared, encoded
                )
        return start, end

    def joined(self, payload: Bytes, ranges: list[tuple[int, int]]) -> EncodedSegments:
        """What is encoded, given where the records of all ranges start and end."""
        end = 0
        for start, stop in ranges:
            if start > end:  # closes the gap
                target, source = payload[end:].ctypes.data, payload[start:].ctypes.data
                ctypes.memmove(target, source, stop - start)
            end += stop - start
        return EncodedSegments(payload[:end], self.n_units, self.n_patches)


class Decoding:
    """A call of `Backend.decode_segments`. Fills `status` and the matrix."""

    def __init__(self, plan: SegmentPlan, payload: Bytes, out: Words, sums: Sums) -> None:
        of_plan, self.geometry, self.dtype = Jobs.of(plan), plan.geometry, plan.dtype
        self.records, self.kinds, used, _ = of_plan
        if payload.size < plan.offsets[-1]:
            raise ValueError(
                f"the payload has {payload.size} bytes; the plan says {plan.offsets[-1]}"
            )
        size = 1 << MAX_PROB_BITS
        luts = np.empty((len(used), size), np.uint32)
        fill_luts(frequencies(used), luts)
        prob_bits = np.array([t.prob_bits for t in used], np.int64)
        self.tables = DecodingTables(luts.reshape(-1), prob_bits)
        self.maps, self.modes, self.sums = of_plan.context_maps(size), _used_modes(plan), sums
        self.payload = bytes_of(payload)
        self.data = _checked(out, plan.geometry, plan.dtype).reshape(-1).view(np.uint8)
        self._packed = Packed(self.data)
        self.status = np.empty(plan.geometry.n_segments, np.uint8)
        self.longest = int(plan.stream_nbytes.max(initial=0))
        self.n_rooms = plan.dtype.word_nbytes + 1
        if self.kinds.any():
            self.n_rooms = common_decoding.N_ROOMS + 2 * plan.dtype.word_nbytes
        if self.maps:
            self.n_rooms = 2 * (contexts.N_ROOMS + plan.dtype.word_nbytes)
        self.room, self.side = (
            jobs.plane_room(plan.geometry),
            _side_nbytes(plan.geometry, plan.dtype),
        )

    def _matrix(self, native: Native) -> tuple[Any, ...]:
        return jobs.matrix_of(self._packed, self.geometry, self.dtype, native)

    def run(self, first: int, last: int, scratch: Scratch) -> None:
        """Decode a range of segments."""
        rooms = scratch.take_rooms(self.n_rooms, self.room, self.side)
        scratch.streams.grow(self.longest)
        scratch.streams.need_transforms(self.modes)
        shared = scratch.streams.packed(), self.sums.arrays(scratch.rest), self.status
        for a, b, kind in _runs(self.kinds, first, last):
            what = a, b, self.records
            if kind == GENERAL:
                matrix = self._matrix(words.merger(self.dtype.word_nbytes))
                segments.decode_range(*what, matrix, self.payload, self.tables, rooms, *shared)
            elif kind == WITH_CONTEXTS:
                scratch.streams.need_contexts()
                matrix = self._matrix(words.merger(self.dtype.word_nbytes))
                tables = self.tables, self.maps
                contexts.decode_range(*what, matrix, self.payload, *tables, rooms, *shared)
            else:
                matrix = self._matrix(merge.merger(kind, self.sums.of_words))
                common_decoding.decode_range(
                    *what, matrix, self.payload, self.tables, rooms, scratch.merging, *shared
                )
