"""Plans as kernels take them: a job for each segment, and the tables and context maps in use.

Kernels fill in the jobs, from segment tables as an index holds them.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import contexts
from wcodec.backends.numba.job_records import (
    COLUMNS,
    JOB,
    N_FOUND,
    check_table,
    fill_jobs,
    fill_rectangles,
)
from wcodec.backends.numba.kernels import Native, Packed, address_of
from wcodec.backends.numba.kinds import common_kinds
from wcodec.backends.protocol import DType, Geometry, SegmentPlan
from wcodec.reference.columns import StoredTable, in_order
from wcodec.reference.planes import BY_ID, Bytes, WordMap
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder, SegmentTable
from wcodec.reference.tables import MAX_CLASSES, ContextMap, Table
from wcodec.reference.tiles import Spans
from wcodec.reference.transforms import Transform

Ints = NDArray[np.int64]

_NO_BYTES: Final = np.empty(0, np.uint8)
_NO_INTS: Final = np.empty(0, np.int64)


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


def matrix_of(data: list[int], geometry: Geometry, dtype: DType, native: Native) -> list[int]:
    """Words of `Matrix`; `data` are those of its bytes, `native` splits words or merges them."""
    g, word_map = geometry, _word_map(dtype.id).words
    shape = g.cols, g.tile_rows, g.tile_cols, dtype.word_nbytes
    return [*data, *shape, *word_map, native.address]


def largest(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the largest segment."""
    return min(geometry.segment_rows, geometry.rows), min(geometry.segment_cols, geometry.cols)


def plane_room(geometry: Geometry) -> int:
    """Bytes for a plane of the largest segment: whole groups, and one for padding."""
    return (math.prod(largest(geometry)) // GROUP + 2) * GROUP


class _Room(threading.local):
    """What kernels that look at segment tables need, for one thread: their words."""

    def __init__(self) -> None:
        self._kept = np.empty(COLUMNS.itemsize, np.uint8), np.empty(JOB.itemsize, np.uint8)
        self.columns, self.job = ([address_of(room), 1] for room in self._kept)


_room: Final = _Room()


def _table(
    columns: tuple[Bytes, int, int], geometry: Geometry, dtype: DType, map_kinds: Ints
) -> list[int]:
    """Words of `job_records.Table`."""
    g, (data, start, end) = geometry, columns
    bounds = g.bounds if type(g) is Spans else _NO_INTS
    return [
        address_of(data), data.size, start, end, dtype.n_planes, g.rows, g.cols, g.segment_rows,
        g.segment_cols, g.tile_rows, g.tile_cols, dtype.word_nbytes, dtype.has_pairs,
        address_of(bounds), bounds.size, address_of(map_kinds), map_kinds.size, *_room.columns,
    ]  # fmt: skip


def _kinds_of(maps: list[ContextMap]) -> Ints:
    return np.array([m.kind for m in maps], np.int64) if maps else _NO_INTS


def rectangles(geometry: Geometry, dtype: DType, segments: Ints | None = None) -> Bytes:
    """Jobs of all segments, or of some, of which only the rectangles are filled in."""
    ids = _NO_INTS if segments is None else np.ascontiguousarray(segments, np.int64)
    n = geometry.n_segments if segments is None else ids.size
    records = np.empty(n * JOB.itemsize, np.uint8)
    table = _table((_NO_BYTES, 0, 0), geometry, dtype, _NO_INTS)
    fill_rectangles([address_of(records), n], table, ids)
    return records


def payload_nbytes(plan: SegmentPlan) -> int:
    """Bytes of all records of a plan, or -1 if it breaks a rule."""
    columns, kinds = _stored_columns(plan.segments), plan.tables.map_kinds  # which have to live
    table = _table(columns, plan.geometry, plan.dtype, kinds)
    return check_table(_room.job, table, len(plan.tables))


def _stored_columns(s: SegmentTable) -> tuple[Bytes, int, int]:
    """Columns as a tensor record holds them: they are in an array, from where to where."""
    if type(s) is StoredTable and s.stored is not None:
        return s.stored.array, s.stored.start, s.stored.end
    parts = [part for c in in_order(s) for part in (bytes([c.itemsize]), c.tobytes())]
    data = np.frombuffer(b"".join(parts if s.layout.size else []), np.uint8)
    return data, 0, data.size


# ---- plans -------------------------------------------------------------------------------------
class Jobs(NamedTuple):
    """All that the kernels need to know of the segments of a plan.

    Attributes
    ----------
    records
        Bytes of type `job_records.JOB`, one a segment.
    kinds
        int64: which kernels suit each segment; see `kinds`.
    tables
        The tables that are used; jobs number them from 0.
    maps
        The context maps that are used, whose tables have these numbers too; jobs number them from
        0.
    kind
        The kind of all segments, or `MIXED`.
    nbytes
        Bytes of all records.
    longest
        Bytes of the longest stream.
    modes
        For each transform that is used, a mode with it.
    """

    records: Bytes
    kinds: Ints
    tables: list[Table]
    maps: list[ContextMap]
    kind: int
    nbytes: int
    longest: int
    modes: set[int]

    @classmethod
    def of(cls, plan: SegmentPlan, encoding: bool = False) -> Jobs:
        """Those of a plan; to encode, sizes are what records take at worst.

        Raises
        ------
        ValueError
            The plan names a table or context map that is not there.
        """
        n, (columns, maps) = plan.geometry.n_segments, _columns_of(plan)
        records, numbers = np.empty(n * JOB.itemsize, np.uint8), np.empty(n + N_FOUND, np.int64)
        tables = np.zeros((2, len(plan.tables)), np.int64)
        for m in maps:
            tables[0, list(m.tables)] = 1
        of_maps = _kinds_of(maps)
        table = _table(columns, plan.geometry, plan.dtype, of_maps)
        fill, found = _NO_BYTES if plan.fill is None else plan.fill, address_of(numbers)
        of, kinds = common_kinds(plan.dtype.id), [found + 8 * N_FOUND, n]
        jobs = [address_of(records), n]
        fill_jobs(jobs, kinds, table, fill, of, tables, int(encoding), [found, N_FOUND])
        n_used, nbytes, longest, transforms, kind = numbers[:N_FOUND].tolist()
        modes = {t << 4 for t in Transform if transforms >> t & 1} if transforms > 1 else set[int]()
        if n_used < 0:
            raise _missing(plan)
        maps = [
            ContextMap(m.kind, m.class_of, tuple(tables[0, list(m.tables)].tolist())) for m in maps
        ]
        used = [plan.tables[i] for i in tables[1, :n_used].tolist()]
        return cls(records, numbers[N_FOUND:], used, maps, kind, nbytes, longest, modes)

    def words(self) -> list[int]:
        """Words of `records`."""
        return [address_of(self.records), self.kinds.size]

    def context_maps(self, size: int) -> tuple[NDArray[Any], ...]:
        """Elements of `ContextMaps`, for tables of `size` entries; none if there are no maps."""
        if not self.maps:
            return ()
        n = len(self.maps)
        class_of = np.zeros((n, 256), np.uint8)
        parts = np.zeros((n, MAX_CLASSES), np.uint32)
        for i, m in enumerate(self.maps):
            class_of[i, : len(m.class_of)] = np.frombuffer(m.class_of, np.uint8)
            parts[i, : len(m.tables)] = np.array(m.tables) * size
        first = [self.tables[m.tables[0]] for m in self.maps]
        numbers = [m.kind for m in self.maps], [t.prob_bits for t in first]
        kind, prob_bits = (np.array(x, np.int64) for x in numbers)
        padding = np.array([t.padding for t in first], np.int64)
        return kind, class_of, parts, prob_bits, padding


def _missing(plan: SegmentPlan) -> ValueError:
    n_tables, n_maps = len(plan.tables), len(plan.tables.maps)
    return ValueError(
        "the plan names a table or context map that is not among its "
        f"{n_tables} tables and {n_maps} maps"
    )


def _columns_of(plan: SegmentPlan) -> tuple[tuple[Bytes, int, int], list[ContextMap]]:
    """As `_stored_columns`, and the context maps that are used, by whose places they name them.

    In a segment with contexts RANS becomes CONTEXT, with a map of one class (`contexts.SINGLE`).
    """
    if not plan.tables.maps:
        return _stored_columns(plan.segments), []
    coder, table, pool = plan.segments.coder, plan.segments.table, plan.tables
    context = coder == Coder.CONTEXT.value
    if not context.any():
        return _stored_columns(plan.segments), []
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
    s = plan.segments
    changed = SegmentTable(s.layout, s.base, s.n_patches, coder, table, s.prediction, s.n_units)
    return _stored_columns(changed), maps
