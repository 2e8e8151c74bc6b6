"""Plans as kernels take them: a job for each segment, and the tables and context maps in use.

NumPy, no loops. Arrays that are kept are not to be changed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import contexts
from wcodec.backends.numba.arguments import ContextMaps, Matrix
from wcodec.backends.numba.job_records import JOB, Columns, Sizes, fill_jobs
from wcodec.backends.numba.kernels import Native, Packed
from wcodec.backends.numba.kinds import common_kinds
from wcodec.backends.protocol import DType, Geometry, SegmentPlan
from wcodec.reference.planes import BY_ID, WordMap
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder
from wcodec.reference.tables import MAX_CLASSES, ContextMap, Table

Ints = NDArray[np.int64]

KEPT_SEGMENTS: Final = 1024  #: grids of more are not kept
_NO_BYTES: Final = np.empty(0, np.uint8)
_NO_OFFSETS: Final = np.empty(0, np.int64)
_NO_PLANES: Final = np.empty((0, 0), np.int64)


# ---- words and geometry ------------------------------------------------------------------------
@lru_cache(maxsize=64)
def _word_map(dtype_id: int) -> Packed:
    """Parameters of a dtype's word map; see `words`."""
    dtype = BY_ID[dtype_id]
    bits = 8 * dtype.word_nbytes
    up, stay, sign, flip, down = 0, (1 << bits) - 1, 0, 0, 0
    if dtype.word_map is WordMap.OFFSET:
        flip = 1 << (bits - 1)
    elif dtype.word_map is WordMap.EXPONENT_FIRST:
        m, down = bits - 1 - dtype.exponent_bits, dtype.exponent_bits
        up, stay, sign = ((1 << dtype.exponent_bits) - 1) << m, (1 << m) - 1, 1 << m
    return Packed(np.array([up, stay, sign, flip, down], np.uint64))


def matrix_of(data: Packed, geometry: Geometry, dtype: DType, native: Native) -> tuple[Any, ...]:
    """Elements of `Matrix`; `native` splits words, or merges them."""
    g = geometry
    return Matrix(
        data,
        g.cols,
        g.tile_rows,
        g.tile_cols,
        dtype.word_nbytes,
        _word_map(dtype.id),
        native.address,
    )


def largest(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the largest segment."""
    return min(geometry.segment_rows, geometry.rows), min(geometry.segment_cols, geometry.cols)


def plane_room(geometry: Geometry) -> int:
    """Bytes for a plane of the largest segment: whole groups, and one for padding."""
    return (math.prod(largest(geometry)) // GROUP + 2) * GROUP


@lru_cache(maxsize=16)
def _blank_jobs(geometry: Geometry) -> NDArray[Any]:
    jobs = np.zeros(geometry.n_segments, JOB)
    jobs["row"], jobs["col"] = geometry.corners()
    jobs["height"], jobs["width"] = geometry.sizes()
    return jobs


def rectangles(geometry: Geometry, segments: Ints | None = None) -> NDArray[Any]:
    """Jobs of all segments, or of some, of which only the rectangles are filled in."""
    kept = geometry.n_segments <= KEPT_SEGMENTS
    jobs = (_blank_jobs if kept else _blank_jobs.__wrapped__)(geometry)
    if segments is not None:
        return jobs.take(segments)  # half the time of an index, with records
    if not kept:
        return jobs
    return jobs.view(np.uint8).copy().view(JOB)  # records are copied field by field otherwise


# ---- plans -------------------------------------------------------------------------------------
class Jobs(NamedTuple):
    """All that the kernels need to know of the segments of a plan.

    Attributes
    ----------
    records
        Of type `job_records.JOB`, one a segment. For encoding they do not say where anything is in
        the payload.
    kinds
        int64: which kernels suit each segment; see `kinds`.
    tables
        The tables that are used; jobs number them from 0.
    maps
        The context maps that are used, whose tables have these numbers too; jobs number them from
        0.
    """

    records: NDArray[Any]
    kinds: Ints
    tables: list[Table]
    maps: list[ContextMap]

    @classmethod
    def of(cls, plan: SegmentPlan, encoding: bool = False) -> Jobs:
        """Those of a plan.

        Raises
        ------
        ValueError
            The plan names a table or context map that is not there.
        """
        s, g, n_tables = plan.segments, plan.geometry, len(plan.tables)
        coder, table, maps = _with_maps(plan)
        records, kinds = rectangles(g), np.empty(g.n_segments, np.int64)
        ids, numbers = np.empty(n_tables, np.int64), np.zeros(n_tables, np.int64)
        for m in maps:
            numbers[list(m.tables)] = 1
        fill = _NO_BYTES if plan.fill is None else plan.fill
        columns = Columns(s.layout, s.base, fill, s.n_patches, coder, table, s.prediction)
        stream_nbytes, offsets = (
            (_NO_PLANES, _NO_OFFSETS) if encoding else (plan.stream_nbytes, plan.offsets)
        )
        sizes = Sizes(plan.modes_nbytes, plan.scale_nbytes, stream_nbytes, offsets)
        n_used = fill_jobs(
            records,
            (g.tile_rows, g.tile_cols),
            columns,
            sizes,
            numbers,
            ids,
            kinds,
            common_kinds(plan.dtype.id),
        )
        if n_used < 0:
            raise _missing(plan)
        maps = [
            ContextMap(m.kind, m.class_of, tuple(numbers[list(m.tables)].tolist())) for m in maps
        ]
        return cls(records, kinds, [plan.tables[i] for i in ids[:n_used].tolist()], maps)

    def context_maps(self, size: int) -> tuple[Any, ...]:
        """Elements of `ContextMaps`, for tables of `size` entries; empty if there are no maps."""
        if not self.maps:
            return ()
        n = len(self.maps)
        class_of = np.zeros((n, 256), np.uint8)
        parts = np.zeros((n, MAX_CLASSES), np.uint32)
        for i, m in enumerate(self.maps):
            class_of[i, : len(m.class_of)] = np.frombuffer(m.class_of, np.uint8)
            parts[i, : len(m.tables)] = np.array(m.tables) * size
        first = [self.tables[m.tables[0]] for m in self.maps]
        return ContextMaps(
            np.array([m.kind for m in self.maps], np.int64),
            class_of,
            parts,
            np.array([t.prob_bits for t in first], np.int64),
            np.array([t.padding for t in first], np.int64),
        )


def _missing(plan: SegmentPlan) -> ValueError:
    n_tables, n_maps = len(plan.tables), len(plan.tables.maps)
    return ValueError(
        "the plan names a table or context map that is not among its "
        f"{n_tables} tables and {n_maps} maps"
    )


def _with_maps(plan: SegmentPlan) -> tuple[NDArray[np.uint8], NDArray[np.uint32], list[ContextMap]]:
    """Columns `coder` and `table`, and the context maps that are used, by whose places `table`
    names them.

    In a segment with contexts RANS becomes CONTEXT, with a map of one class (`contexts.SINGLE`).
    """
    coder, table, pool = plan.segments.coder, plan.segments.table, plan.tables
    context = coder == Coder.CONTEXT.value
    if not context.any():
        return coder, table, []
    single, n_maps = (coder == Coder.RANS.value) & context.any(axis=0), len(pool.maps)
    table = table.copy()
    if single.any():
        if (table[context] >= n_maps).any():
            raise _missing(plan)
        table[single] += np.uint32(n_maps)
        coder, context = np.where(single, np.uint8(Coder.CONTEXT), coder), context | single
    named = table[context].tolist()
    numbers = {number: i for i, number in enumerate(sorted(set(named)))}
    if not single.any() and max(numbers) >= n_maps:
        raise _missing(plan)
    maps = [
        pool.maps[i] if i < n_maps else ContextMap(contexts.SINGLE, bytes(1), (i - n_maps,))
        for i in numbers
    ]
    if max(max(m.tables) for m in maps) >= len(pool):
        raise _missing(plan)
    table[context] = [numbers[i] for i in named]
    return coder, table, maps
