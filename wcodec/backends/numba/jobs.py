"""Plans as the numba backend's kernels take them: jobs, tables, context maps, parameters of words.

NumPy, no loops.

Arrays that are kept are not to be changed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import contexts, ir, rans_vectors
from wcodec.backends.numba import segments as kernels
from wcodec.backends.protocol import DType, Geometry, SegmentPlan
from wcodec.reference import entropy
from wcodec.reference.entropy import ContextMap, Table
from wcodec.reference.planes import BY_ID, Bytes, WordMap
from wcodec.reference.segments import Coder, padded

Ints = NDArray[np.int64]

KEPT_SEGMENTS: Final = 1024  #: grids of more are not kept
_NO_BYTES: Final = np.empty(0, np.uint8)
_NO_OFFSETS: Final = np.empty(0, np.int64)
_NO_PLANES: Final = np.empty((0, 0), np.int64)


# ---- words -------------------------------------------------------------------------------------
@lru_cache(maxsize=64)
def word_map(dtype_id: int) -> NDArray[np.uint64]:
    """Parameters of the dtype's word map, as the kernels take them."""
    dtype = BY_ID[dtype_id]
    bits = 8 * dtype.word_nbytes
    up, stay, sign, flip, down = 0, (1 << bits) - 1, 0, 0, 0
    if dtype.word_map is WordMap.OFFSET:
        flip = 1 << (bits - 1)
    elif dtype.word_map is WordMap.EXPONENT_FIRST:
        m = bits - 1 - dtype.exponent_bits
        up, stay, sign, down = (
            ((1 << dtype.exponent_bits) - 1) << m,
            (1 << m) - 1,
            1 << m,
            dtype.exponent_bits,
        )
    return np.array([up, stay, sign, flip, down], np.uint64)


def _kind(dtype: DType, pairs: bool) -> int:
    name = dtype.word_map.name.lower().replace("_first", f" {dtype.exponent_bits}")
    kind = (pairs, dtype.word_nbytes, name)
    return (
        1 + rans_vectors.KINDS.index(kind)
        if ir.VARIANT != "plain" and kind in rans_vectors.KINDS
        else 0
    )


@lru_cache(maxsize=64)
def fused_kinds(dtype_id: int) -> tuple[int, int]:
    """Numbers of the vector kernels that suit layouts BYTES and PAIRS of a dtype
    (`rans_vectors.KINDS`, from 1), or 0 for none.
    """
    return _kind(BY_ID[dtype_id], False), _kind(BY_ID[dtype_id], True)


# ---- geometry ----------------------------------------------------------------------------------
def matrix_shape(geometry: Geometry, dtype: DType) -> tuple[int, int, int, int]:
    """What the kernels take as `shape`."""
    return geometry.cols, geometry.tile_rows, geometry.tile_cols, dtype.word_nbytes


def largest(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the largest segment."""
    return min(geometry.segment_rows, geometry.rows), min(geometry.segment_cols, geometry.cols)


def plane_room(geometry: Geometry) -> int:
    """Bytes for a plane of the largest segment: whole groups, and one for padding."""
    return (math.prod(largest(geometry)) // entropy.GROUP + 2) * entropy.GROUP


@lru_cache(maxsize=16)
def _blank_jobs(geometry: Geometry, n_planes: int) -> Ints:
    jobs = np.zeros(
        (geometry.n_segments, kernels.N_COLUMNS + n_planes * kernels.PLANE_COLUMNS), np.int64
    )
    jobs[:, kernels.ROW], jobs[:, kernels.COL] = geometry.corners()
    jobs[:, kernels.HEIGHT], jobs[:, kernels.WIDTH] = geometry.sizes()
    return jobs


def rectangles(geometry: Geometry, dtype: DType, segments: Ints | None = None) -> Ints:
    """Jobs of all segments, or of some, of which only the rectangles are filled in."""
    kept = geometry.n_segments <= KEPT_SEGMENTS
    jobs = (_blank_jobs if kept else _blank_jobs.__wrapped__)(geometry, dtype.n_planes)
    if segments is not None:
        return jobs[segments]
    return jobs.copy() if kept else jobs


# ---- plans -------------------------------------------------------------------------------------
class Jobs(NamedTuple):
    """All that the kernels need to know of the segments of a plan.

    Attributes
    ----------
    rows
        A job each; for encoding they do not say where anything is in the payload.
    kinds
        For each the number of the fused kernels that suit it, 0 for plain loops, or
        `segments.WITH_CONTEXTS`.
    tables
        The tables that are used; jobs number them from 0.
    maps
        The context maps that are used, whose tables have these numbers too; jobs number them from
        0.
    """

    rows: Ints
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
        rows, kinds, ids = (
            rectangles(g, plan.dtype),
            np.empty(g.n_segments, np.int64),
            np.empty(n_tables, np.int64),
        )
        numbers = np.zeros(n_tables, np.int64)
        for m in maps:
            numbers[list(m.tables)] = 1
        n_used = kernels.fill_jobs(
            rows,
            g.tile_rows,
            g.tile_cols,
            s.layout,
            s.base,
            _NO_BYTES if plan.fill is None else plan.fill,
            s.n_patches,
            coder,
            table,
            s.prediction,
            plan.modes_nbytes,
            plan.scale_nbytes,
            _NO_PLANES if encoding else plan.stream_nbytes,
            _NO_OFFSETS if encoding else plan.offsets,
            numbers,
            ids,
            kinds,
            *fused_kinds(plan.dtype.id),
        )
        if n_used < 0:
            raise _missing(plan)
        maps = [
            ContextMap(m.kind, m.class_of, tuple(numbers[list(m.tables)].tolist())) for m in maps
        ]
        return cls(rows, kinds, [plan.tables[i] for i in ids[:n_used].tolist()], maps)

    def map_arrays(self, own: Ints, size: int) -> tuple[NDArray[Any], ...]:
        """The maps as `contexts` takes them, for tables of `size` entries; `own` is what belongs to
        a table.
        """
        if not self.maps:
            return ()
        class_of, parts = (
            np.zeros((len(self.maps), 256), np.uint8),
            np.zeros((len(self.maps), entropy.MAX_CLASSES), np.uint32),
        )
        for i, m in enumerate(self.maps):
            class_of[i, : len(m.class_of)] = np.frombuffer(m.class_of, np.uint8)
            parts[i, : len(m.tables)] = np.array(m.tables) * size
        return (
            np.array([m.kind for m in self.maps], np.int64),
            class_of,
            parts,
            own[parts[:, 0] // size],
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


def used_modes(plan: SegmentPlan) -> set[int]:
    """All that stands in the column of modes."""
    modes = plan.segments.prediction
    return set(np.flatnonzero(np.bincount(modes.reshape(-1))).tolist()) if modes.any() else set()


def worst_nbytes(plan: SegmentPlan) -> Ints:
    """The most bytes that each segment's record can take."""
    s, size = plan.segments, plan.plane_nbytes
    raw = s.coder == Coder.RAW.value
    streams = np.where(plan.is_stream, entropy.max_stream_nbytes(size), padded(size) * raw)
    patches = padded(4 * plan.n_elements) * (plan.is_pairs & (plan.dtype.word_nbytes > 1))
    return np.asarray(
        plan.words_nbytes + plan.head_nbytes + streams.sum(axis=0) + patches, np.int64
    )


# ---- tables ------------------------------------------------------------------------------------
def frequencies(tables: list[Table]) -> Ints:
    """Of all symbols of some tables, one row each."""
    out = np.empty((len(tables), 256), np.int64)
    for line, table in zip(out, tables, strict=True):
        line[:] = table.freq
    return out


def coding_tables(tables: list[Table]) -> tuple[NDArray[np.uint64], Bytes, Bytes]:
    """Encoding tables: for each symbol ``ceil(2 ** (32 + prob_bits) / freq)`` and ``freq << 32 |
    start``; those of `rans_vectors`.

    The last ones are those for symbols with contexts.
    """
    freq, bits = (
        frequencies(tables).astype(np.uint64),
        np.array([t.prob_bits for t in tables], np.uint64),
    )
    start = np.cumsum(freq, axis=1) - freq
    one = np.uint64(1) << (np.uint64(32) + bits.reshape(-1, 1))
    some = np.maximum(freq, np.uint64(1))
    words = (
        (freq << np.uint64(20) | start << np.uint64(8))
        .astype("<u4")
        .view(np.uint8)
        .reshape(-1, 256, 4)
    )
    entries = np.ascontiguousarray(words[:, :, 1:].transpose(0, 2, 1)) if ir.BYTE_LOOKUP else words
    reciprocals = np.stack(
        [(one + some - np.uint64(1)) // some, freq << np.uint64(32) | start], axis=-1
    )
    return (
        reciprocals,
        entries.reshape(len(freq), entries.shape[1] * entries.shape[2]),
        words.reshape(len(freq), 1024),
    )
