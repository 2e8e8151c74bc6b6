"""Work lists: plans of one or many tensors as the arrays that kernels read,
and their packing for one upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.layout import BATCH, CONTEXT_MAP, PLANE, SEGMENT, TABLE, TENSOR
from wcodec.backends.cuda.runtime import Runtime
from wcodec.reference.planes import DType
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder, SegmentPlan, padded
from wcodec.reference.tables import ContextMap, TablePool
from wcodec.reference.tiles import Geometry

Array = NDArray[Any]
Ids = NDArray[np.int64]

ALIGN: Final = 256  #: of arrays in a packed upload
WARPS: Final = 8  #: of a block: streams that it codes at once
#: streams that a block codes with the table that it has loaded: three for each warp, so that none
#: is long last
MOST_IN_BATCH: Final = 24
#: of decoders, as many as an H200 holds at once: fewer streams a block before there are fewer
#: blocks
BLOCKS: Final = 660


class WorkItem(NamedTuple):
    """Segments of one tensor and where they are: device addresses of the matrix, the payload, and
    what to encode with: modes, scales.
    """

    plan: SegmentPlan
    words: int
    payload: int = 0
    modes: int = 0
    scales: int = 0


class Batches(NamedTuple):
    """Ids sorted by table or context map, and the pieces of that list that blocks take."""

    ids: NDArray[np.uint32]
    batches: Array

    @classmethod
    def of(cls, ids: Ids, tables: Ids) -> Batches:
        """Batches of `ids`, each with its table."""
        order = np.argsort(tables, kind="stable")
        ids, tables = ids[order], tables[order]
        size = min(MOST_IN_BATCH, max(WARPS, -(-ids.size // (BLOCKS * WARPS)) * WARPS))
        first = np.flatnonzero(np.diff(tables, prepend=-1))
        length = np.diff(first, append=ids.size)
        n = -(-length // size)
        piece = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        out = np.zeros(int(n.sum()), BATCH)
        out["first"] = np.repeat(first, n) + piece * size
        out["count"] = np.minimum(size, np.repeat(first + length, n) - out["first"])
        out["table"] = tables[out["first"]]
        return cls(ids.astype(np.uint32), out)


class Packed:
    """Arrays that go to the device in one copy."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._offsets: list[int] = []
        self._nbytes = 0
        self._base = 0
        self._device: Any = None

    def add(self, array: Array) -> int:
        """Number of the array, for `address` and `device`."""
        self._arrays.append(np.ascontiguousarray(array))
        self._offsets.append(self._nbytes)
        self._nbytes += -(-array.nbytes // ALIGN) * ALIGN
        return len(self._arrays) - 1

    def upload(self, runtime: Runtime) -> None:
        """Copy all arrays to the device."""
        host = np.zeros(max(self._nbytes, ALIGN), np.uint8)
        for offset, array in zip(self._offsets, self._arrays, strict=True):
            host[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._device = runtime.upload(host)
        self._base = runtime.address(self._device)

    def address(self, i: int) -> np.uint64:
        """Device address of an array."""
        return np.uint64(self._base + self._offsets[i])

    def device(self, i: int) -> Any:
        """Bytes of an array on the device."""
        return self._device[self._offsets[i] : self._offsets[i] + self._arrays[i].nbytes]


def tensor_row(geometry: Geometry, dtype: DType) -> tuple[int, ...]:
    """A `TENSOR`."""
    return (
        geometry.cols, geometry.tile_rows, geometry.tile_cols,
        dtype.word_nbytes, int(dtype.word_map), dtype.exponent_bits, dtype.n_planes,
    )  # fmt: skip


def rectangles(geometry: Geometry, dtype: DType, words: int) -> Array:
    """`SEGMENT`s of a geometry, of which only the place in the matrix is filled in."""
    out, (rows, cols) = np.zeros(geometry.n_segments, SEGMENT), geometry.corners()
    out["words"] = words + (rows * geometry.cols + cols) * dtype.word_nbytes
    out["height"], out["width"] = geometry.sizes()
    out["n_tiles"] = geometry.tile_counts()
    return out


class TableRows:
    """Rows of the tables and context maps that are used, of any number of pools."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], int] = {}
        self._tables: list[Any] = []
        self._map_rows: dict[tuple[int, int], int] = {}
        self._maps: list[tuple[ContextMap, list[int]]] = []

    def of(
        self, pool: TablePool, ids: NDArray[np.uint32], coder: NDArray[np.uint8]
    ) -> NDArray[np.uint32]:
        """`ids`, with rows in place of numbers of tables and context maps."""
        out = ids.astype(np.uint32)
        for which, row_of in (
            (coder == Coder.RANS, self._row),
            (coder == Coder.CONTEXT, self._map_row),
        ):
            used, inverse = np.unique(ids[which], return_inverse=True)
            if used.size:
                out[which] = np.array([row_of(pool, i) for i in used.tolist()], np.uint32)[
                    inverse.reshape(-1)
                ]
        return out

    def _row(self, pool: TablePool, i: int) -> int:
        row = self._rows.setdefault((id(pool), i), len(self._tables))
        if row == len(self._tables):
            self._tables.append(pool[i])
        return row

    def _map_row(self, pool: TablePool, i: int) -> int:
        row = self._map_rows.setdefault((id(pool), i), len(self._maps))
        if row == len(self._maps):
            self._maps.append((pool.maps[i], [self._row(pool, t) for t in pool.maps[i].tables]))
        return row

    def maps(self) -> Array:
        """All context maps, as `CONTEXT_MAP`."""
        out = np.zeros(len(self._maps), CONTEXT_MAP)
        for row, (context_map, tables) in zip(out, self._maps, strict=True):
            row["kind"], row["prob_bits"] = context_map.kind, self._tables[tables[0]].prob_bits
            row["tables"][: len(tables)] = tables
            row["class_of"][: len(context_map.class_of)] = np.frombuffer(
                context_map.class_of, np.uint8
            )
        return out

    def array(self) -> Array:
        """All tables, as `TABLE`."""
        out = np.zeros(len(self._tables), TABLE)
        for row, table in zip(out, self._tables, strict=True):
            row["prob_bits"] = table.prob_bits
            row["padding"] = table.padding
            row["freq"] = table.freq
        return out


@dataclass
class WorkList:
    """Structures for the segments of some jobs.

    Attributes
    ----------
    tables, maps, tensors, segments, planes
        Arrays of the types of `wcodec.backends.cuda.layout`. Planes stand segment by segment, as
        many for each as its dtype has.
    """

    tables: Array
    maps: Array
    tensors: Array
    segments: Array
    planes: Array

    @classmethod
    def of(cls, jobs: Sequence[WorkItem], encoding: bool = False) -> WorkList:
        """Structures of all jobs, without scratch."""
        tables, tensors, segments, planes = TableRows(), np.zeros(len(jobs), TENSOR), [], []
        n_segments, n_planes = 0, 0
        for t, job in enumerate(jobs):
            tensors[t] = tensor_row(job.plan.geometry, job.plan.dtype)
            some = _segments(job, t, n_planes, encoding)
            planes.append(_planes(job, tables, n_segments, encoding))
            segments.append(some)
            n_segments += some.size
            n_planes += planes[-1].size
        none = np.zeros(0, SEGMENT), np.zeros(0, PLANE)
        return cls(
            tables.array(),
            tables.maps(),
            tensors,
            np.concatenate([none[0], *segments]),
            np.concatenate([none[1], *planes]),
        )


def _segments(job: WorkItem, t: int, first_plane: int, encoding: bool) -> Array:
    plan, s = job.plan, job.plan.segments
    out = rectangles(plan.geometry, plan.dtype, job.words)
    out["tensor"], out["plane"] = t, first_plane + np.arange(out.size) * plan.dtype.n_planes
    out["layout"], out["base"] = s.layout, s.base
    if plan.fill is not None:
        out["fill"] = plan.fill
    if encoding:
        out["modes"] = plan.modes_offsets[:-1] + job.modes
        out["scales"] = plan.scale_offsets[:-1] + job.scales
        out["scales_nbytes"] = plan.scale_nbytes
    else:
        out["record"] = out["modes"] = plan.offsets[:-1] + job.payload
        out["scales"] = out["modes"] + padded(plan.modes_nbytes).astype(np.uint64)
        out["patches"], out["n_patches"] = plan.patch_offsets + job.payload, s.n_patches
    return out


def _planes(job: WorkItem, tables: TableRows, first_segment: int, encoding: bool) -> Array:
    plan, s = job.plan, job.plan.segments
    n_planes, n = plan.dtype.n_planes, plan.geometry.n_segments
    out = np.zeros((n, n_planes), PLANE)
    out["n_symbols"] = plan.plane_nbytes.T
    out["coder"] = s.coder.T
    out["prediction"] = s.prediction.T
    out["table"] = tables.of(plan.tables, s.table, s.coder).T
    out["segment"], out["index"] = first_segment + np.arange(n)[:, None], np.arange(n_planes)
    if not encoding:
        out["at"], out["nbytes"] = plan.plane_offsets.T + job.payload, plan.stream_nbytes.T
    return out.reshape(-1)


def whole_groups(n_symbols: Array) -> Ids:
    """Symbols with the padding of the last group."""
    return np.asarray(-(-n_symbols.astype(np.int64) // GROUP) * GROUP, np.int64)
