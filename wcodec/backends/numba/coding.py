"""Calls of kernels: what they take is made once for all segments, and then used range by range."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import (
    common_decoding,
    common_encoding,
    contexts,
    jobs,
    large_outputs,
    merge,
    segments,
    split,
    words,
)
from wcodec.backends.numba.arguments import Heads
from wcodec.backends.numba.checksums import Sums
from wcodec.backends.numba.job_records import JOB, MIXED
from wcodec.backends.numba.jobs import Ints, Jobs
from wcodec.backends.numba.kernels import Native, address_of, flat
from wcodec.backends.numba.kinds import GENERAL, WITH_CONTEXTS, common_kinds
from wcodec.backends.numba.rans import VECTOR_BITS
from wcodec.backends.numba.rans_vectors import TOGETHER
from wcodec.backends.numba.scratch import Scratch
from wcodec.backends.numba.tables import encoding_tables, fill_luts, frequencies
from wcodec.backends.protocol import DType, EncodedSegments, Geometry, SegmentPlan
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.tables import MAX_PROB_BITS
from wcodec.reference.tiles import Spans

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


def _runs(of: Jobs, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of segments of the same kind: first, last, kind."""
    if of.kind != MIXED:
        yield first, last, of.kind
        return
    cuts = first + 1 + np.flatnonzero(np.diff(of.kinds[first:last]))
    for start, end in pairwise([first, *cuts.tolist(), last]):
        yield start, end, int(of.kinds[start])


def _side_nbytes(geometry: Geometry, dtype: DType) -> int:
    """Room for the words of a segment, where tiles are narrower than it (`Rooms.words`)."""
    narrow = geometry.tile_cols < jobs.largest(geometry)[1]
    return jobs.plane_room(geometry) * dtype.word_nbytes if narrow else 0


def all_sums(plan: SegmentPlan) -> Sums:
    """For all checksums."""
    g = plan.geometry
    width = 1 if type(g) is Spans else max(1, min(g.segment_cols, g.cols))
    return Sums(g.n_segments, (g.rows, g.cols, width, plan.dtype.word_nbytes), True)


def no_sums() -> Sums:
    """For no checksum."""
    return Sums(0, (0, 1, 1, 1), False)


class Counting:
    """A call of `Backend.histogram` or `Backend.histograms`, whose parameters it takes. Fills
    `counts`, of shape (modes * segments, histograms of each, 256).
    """

    def __init__(
        self,
        matrix: Words,
        geometry: Geometry,
        dtype: DType,
        ids: Ints | None,
        planes: tuple[int, ...] | None,
        modes: Sequence[int],
        base: int | None,
        fill: int,
    ) -> None:
        pairs, word_nbytes = base is not None, dtype.word_nbytes
        nibbles = pairs and word_nbytes == 1
        numbers = range(2 if nibbles else word_nbytes) if planes is None else planes
        which, window = np.array(numbers, np.int64), -1 if base is None else base
        self.counted = which, np.array(modes, np.int64), window, fill
        self.records, self.modes = jobs.rectangles(geometry, dtype, ids), set(modes)
        self.n = geometry.n_segments if ids is None else ids.size
        n_each = which.size + (pairs and not nibbles)
        self.counts = np.empty((len(modes) * self.n, n_each, 256), np.int64)
        height, width = jobs.largest(geometry)
        one_tile = height <= geometry.tile_rows and width <= geometry.tile_cols
        self.kind = common_kinds(dtype.id)[pairs] if one_tile else GENERAL
        if self.kind == GENERAL:
            native = words.splitter(word_nbytes)
        else:
            native = split.splitter(self.kind, nibbles or bool((which > 0).any()))
        self.data = bytes_of(_checked(matrix, geometry, dtype))
        self.matrix = jobs.matrix_of(flat(self.data), geometry, dtype, native)
        self.n_rooms = common_encoding.SHARE + word_nbytes
        self.room, self.side = jobs.plane_room(geometry), _side_nbytes(geometry, dtype)
        n_words = min(self.n * height * width, geometry.rows * geometry.cols)
        self.nbytes = n_words * word_nbytes  # at most

    def run(self, first: int, last: int, scratch: Scratch) -> None:
        """Count the segments of a range."""
        scratch.streams.need_transforms(self.modes)
        rooms = scratch.take_rooms(self.n_rooms, self.room, self.side)
        records = [address_of(self.records), self.n]
        what = first, last, records, self.matrix, self.counted, rooms
        into = scratch.four, scratch.streams.natives, self.counts
        if self.kind == GENERAL:
            segments.histogram_range(*what, *into)
        else:
            common_encoding.histogram_range(*what, scratch.splitting, *into)


class Encoding:
    """A call of `Backend.encode_segments`."""

    def __init__(self, plan: SegmentPlan, matrix: Words, sums: Sums) -> None:
        self.jobs, self.geometry, self.dtype = Jobs.of(plan, True), plan.geometry, plan.dtype
        tables, words_of_entries = encoding_tables(self.jobs.tables)
        if (tables.prob_bits < VECTOR_BITS).any():  # quotients of vectors need more
            self.jobs.kinds[self.jobs.kinds > 0] = GENERAL
            self.jobs = self.jobs._replace(kind=MIXED)
        self.tables = tables
        self.context_tables = tables._replace(entries=words_of_entries)
        self.maps, self.sums = self.jobs.context_maps(256), sums
        modes, scales = (
            _NO_BYTES if part is None else bytes_of(part) for part in (plan.modes, plan.scales)
        )
        self.heads = Heads(modes, scales)
        self.data = bytes_of(_checked(matrix, plan.geometry, plan.dtype))
        self.n_units = np.zeros((plan.dtype.n_planes, plan.geometry.n_segments), np.uint32)
        self.n_patches = np.zeros(plan.geometry.n_segments, np.uint32)
        self.room = jobs.plane_room(plan.geometry)
        self.side = _side_nbytes(plan.geometry, plan.dtype)

    @property
    def worst_nbytes(self) -> int:
        """The most bytes that all records can take."""
        return self.jobs.nbytes

    def _matrix(self, native: Native) -> list[int]:
        return jobs.matrix_of(flat(self.data), self.geometry, self.dtype, native)

    def run(self, first: int, last: int, payload: Bytes, scratch: Scratch) -> tuple[int, int]:
        """Encode a range of segments, from where it would start in the payload at worst.

        Returns where its records start and end.
        """
        n_rooms = 2 * common_encoding.SHARE + self.dtype.word_nbytes
        start = int(self.jobs.records.view(JOB)[first]["start"]) if first else 0
        rooms = scratch.take_rooms(n_rooms, self.room, self.side, encoding=True)
        scratch.streams.need_transforms(self.jobs.modes)
        shared, end = (scratch.streams.packed(), self.sums.arrays(scratch.rest)), start
        for a, b, kind in _runs(self.jobs, first, last):
            encoded = payload[end:], self.n_units, self.n_patches
            what = a, b, self.jobs.words()
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

    def in_parts(self, payload: Bytes, ranges: list[tuple[int, int]]) -> EncodedSegments:
        """As `joined`, for `Backend.encode_in_parts`: nothing is moved."""
        parts = [payload[start:stop] for start, stop in ranges]
        return EncodedSegments(parts, self.n_units, self.n_patches)


class Decoding:
    """A call of `Backend.decode_segments`. Fills `status` and the matrix."""

    def __init__(self, plan: SegmentPlan, payload: Bytes, out: Words, sums: Sums) -> None:
        self.jobs, self.geometry, self.dtype = Jobs.of(plan), plan.geometry, plan.dtype
        if payload.size < self.jobs.nbytes:
            raise ValueError(
                f"the payload has {payload.size} bytes; the plan says {self.jobs.nbytes}"
            )
        used, size = self.jobs.tables, 1 << MAX_PROB_BITS
        luts = np.empty((len(used), size), np.uint32)
        fill_luts(frequencies(used), luts)
        prob_bits = np.array([t.prob_bits for t in used], np.int64)
        self.tables = luts.reshape(-1), prob_bits
        self.maps, self.sums = self.jobs.context_maps(size), sums
        self.payload = bytes_of(payload)
        self.data = _checked(out, plan.geometry, plan.dtype).reshape(-1).view(np.uint8)
        self.status = np.empty(plan.geometry.n_segments, np.uint8)
        self.streaming = large_outputs.is_streamed(self.data.nbytes)
        nbytes = plan.dtype.word_nbytes
        self.n_rooms = nbytes + 1
        if self.jobs.kind != GENERAL:
            self.n_rooms = common_decoding.N_ROOMS + TOGETHER * nbytes
        if self.maps:
            self.n_rooms = max(self.n_rooms, 2 * (contexts.N_ROOMS + nbytes))
        self.room = jobs.plane_room(plan.geometry)
        self.side = _side_nbytes(plan.geometry, plan.dtype)

    def _matrix(self, native: Native) -> list[int]:
        return jobs.matrix_of(flat(self.data), self.geometry, self.dtype, native)

    def run(self, first: int, last: int, scratch: Scratch) -> None:
        """Decode a range of segments."""
        rooms = scratch.take_rooms(self.n_rooms, self.room, self.side)
        scratch.streams.grow(self.jobs.longest)
        scratch.streams.need_transforms(self.jobs.modes)
        shared = scratch.streams.packed(), self.sums.arrays(scratch.rest), self.status
        for a, b, kind in _runs(self.jobs, first, last):
            what = a, b, self.jobs.words()
            if kind == GENERAL:
                matrix = self._matrix(words.merger(self.dtype.word_nbytes))
                segments.decode_range(*what, matrix, self.payload, self.tables, rooms, *shared)
            elif kind == WITH_CONTEXTS:
                scratch.streams.need_contexts()
                matrix = self._matrix(words.merger(self.dtype.word_nbytes))
                tables = self.tables, self.maps
                contexts.decode_range(*what, matrix, self.payload, *tables, rooms, *shared)
            else:
                crc = self.sums.of_words
                matrix = self._matrix(merge.merger(kind, crc))
                streaming = merge.merger(kind, crc, True).address if self.streaming else 0
                scratch.merges["streaming"] = streaming
                common_decoding.decode_range(
                    *what, matrix, self.payload, self.tables, rooms, scratch.merging, *shared
                )
