"""Index records, read and written: tables, contexts, metadata, tensors. Spec: 4.3 to 4.5."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError, within
from wcodec.reference import rans
from wcodec.reference.columns import Stored, StoredTable, joined_columns, write_columns
from wcodec.reference.cursor import Cursor, fail
from wcodec.reference.differences import Difference, coded_dtype
from wcodec.reference.memory import CONTEXT_MAP_NBYTES, PAIR_NBYTES, TABLE_NBYTES, Memory
from wcodec.reference.planes import BY_ID, Bytes, DType
from wcodec.reference.prediction import IS_MODE, PER_TILE
from wcodec.reference.segments import (
    LAST_LAYOUT,
    MAX_WINDOW_BASE,
    Coder,
    SegmentPlan,
    SegmentTable,
)
from wcodec.reference.tables import (
    MAX_CLASSES,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    TablePool,
    TableReader,
)
from wcodec.reference.tiles import (
    MAX_RANK,
    MAX_SEGMENT_ELEMENTS,
    MIN_TILE,
    Geometry,
    Spans,
    matrix_view,
)

TENSOR: Final = struct.Struct("<QQIBBBBIIIIHHHH")

MAX_DATA_NBYTES: Final = (1 << 63) - 1

_IS_CODER: Final = np.isin(np.arange(256), list(Coder))

_SHAPES: Final = [struct.Struct(f"<{rank}Q") for rank in range(MAX_RANK + 1)]
_FEW_SEGMENTS: Final = 4  #: of which a plan takes no time, but many of them take memory
_LAST_DIFFERENCE: Final = int(max(Difference))

_HEAD_UNITS: Final = rans.HEAD_NBYTES // rans.UNIT


@dataclass
class TensorRecord:
    """What the index says of one tensor (R4.30). Not to be changed."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    row_rank: int
    geometry: Geometry
    segments: SegmentTable
    segment_crc32: NDArray[np.uint32]
    payload_offset: int
    payload_nbytes: int
    crc32: int
    dtype_name: str = ""
    difference: Difference = Difference.NONE
    duplicate_of: int | None = None
    _plan: SegmentPlan | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.geometry.rows * self.geometry.cols * self.dtype.word_nbytes

    def duplicate(self, name: str, of: int) -> TensorRecord:
        """The record of a duplicate of this tensor, which is number `of`; both have one plan."""
        record = replace(self, name=name, duplicate_of=of)
        record._plan = self._plan
        return record

    @property
    def is_single(self) -> bool:
        """Whether it is a single row, and that a segment of one tile, and not empty."""
        g = self.geometry
        return g.rows == 1 and 0 < g.cols <= min(g.segment_cols, g.tile_cols)

    @property
    def coded_dtype(self) -> DType:
        """As the function `coded_dtype`, of this tensor."""
        return coded_dtype(self.dtype, self.difference)

    def part(self, ids: NDArray[np.int64], geometry: Geometry, tables: TablePool) -> SegmentPlan:
        """The plan of some segments, which fill a matrix of this geometry;
        see `Geometry.select`.
        """
        return SegmentPlan(self.coded_dtype, geometry, self.segments.take(ids), tables)

    def plan(self, tables: TablePool) -> SegmentPlan:
        """The plan of all segments; the same each time, with what it has found out."""
        if self._plan is None or self._plan.tables is not tables:
            self._plan = SegmentPlan(self.coded_dtype, self.geometry, self.segments, tables)
        return self._plan


def write_tensor(t: TensorRecord) -> bytes:
    """The body of a TENSOR record (R4.30)."""
    name, dtype_name, g = t.name.encode(), t.dtype_name.encode(), t.geometry
    fixed = TENSOR.pack(
        t.payload_offset, t.payload_nbytes, t.crc32, t.dtype.id, len(t.shape), t.row_rank, 0,
        g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols, int(t.difference), len(name),
        len(dtype_name), 0,
    )  # fmt: skip
    parts = [fixed, struct.pack(f"<{len(t.shape)}Q", *t.shape), name, dtype_name]
    if g.n_segments:
        parts += [t.segment_crc32.astype("<u4").tobytes(), write_columns(t.segments)]
    return b"".join(parts)


# ---- reading -------------------------------------------------------------------------------------
#: `check_plan`, or what does the same
PlanChecker = Callable[[SegmentPlan], None]


def read_tensor(body: Cursor, index: Bytes, has_base: bool, memory: Memory) -> TensorRecord:
    """The body of a TENSOR record, checked (R4.30 to R4.39) but for its plan: see `check_tensor`.
    `index` is what it is a part of.
    """
    (
        offset, nbytes, crc, dtype_id, rank, row_rank, order, s_rows, s_cols, t_rows, t_cols, flags,
        n_name, n_dtype, reserved,
    ) = body.unpack(TENSOR)  # fmt: skip
    if rank > MAX_RANK or row_rank > rank:
        raise fail("bad_range", f"rank {rank}, row_rank {row_rank}")
    shape: tuple[int, ...] = body.unpack(_SHAPES[rank])
    name, dtype_name = body.text(n_name), body.text(n_dtype) if n_dtype else ""
    try:
        if flags & ~3 or reserved:  # R4.31
            raise fail("bad_value", "reserved bits of the tensor record are set")
        if flags > _LAST_DIFFERENCE or (flags and not has_base):
            raise fail(
                "bad_value",
                f"difference {flags}" + ("" if has_base else ", in a file that has no base"),
            )
        if dtype_id not in BY_ID:
            raise fail("unsupported_coder", f"dtype id {dtype_id}")
        if order != 0:
            raise fail("unsupported_coder", f"element order {order}")
        dtype = BY_ID[dtype_id]
        rows, cols = matrix_view(shape, row_rank, dtype.words_per_element)
        largest = rows * cols * dtype.word_nbytes
        if 0 in shape:
            largest = math.prod(max(d, 1) for d in shape) * dtype.nbytes
        if largest > MAX_DATA_NBYTES:  # R4.35
            raise fail(
                "bad_range",
                "the tensor has more than 2^63 - 1 bytes, or would if no dimension were 0",
            )
        geometry = Geometry(rows, cols, s_rows, s_cols, t_rows, t_cols)
        check_geometry(geometry)
        n = geometry.n_segments
        if 4 * n > body.left:
            raise fail(
                "bad_range", f"{n} segments; the record has room for {body.left // 4} checksums"
            )
        difference = Difference(flags) if flags else Difference.NONE
        coded = coded_dtype(dtype, difference)
        memory.take_tensor(n, coded.n_planes)
        crcs = body.array("<u4", n).astype(np.uint32)
        if n:
            segments: SegmentTable = StoredTable.at(
                Stored(index, body.at, body.end, n, coded.n_planes)
            )
        else:
            body.done("the segment table")
            segments = SegmentTable.zeros(0, coded.n_planes)
        return TensorRecord(
            name, dtype, shape, row_rank, geometry, segments, crcs, offset, nbytes, crc, dtype_name,
            difference,
        )  # fmt: skip
    except DecodeError as e:
        e.tensor = name
        raise


def check_tensor(t: TensorRecord, tables: TablePool, check_plan: PlanChecker) -> None:
    """Check the plan of a tensor and the size of its payload (R4.34)."""
    with within(tensor=t.name):
        plan = SegmentPlan(t.coded_dtype, t.geometry, t.segments, tables)
        if t.segment_crc32.size:  # a file may have very many tensors without segments
            check_plan(plan)
        if t.payload_nbytes != (plan.payload_nbytes if t.segment_crc32.size else 0):
            raise fail("bad_range", "the segments' sizes do not sum to the payload's")
    if t.segment_crc32.size > _FEW_SEGMENTS:  # who wants it needs not make it again
        t._plan = plan


def by_dtype(dtypes: Iterable[DType]) -> list[list[int]]:
    """Numbers of those that are the same, in order."""
    ids: dict[int, list[int]] = {}
    for i, dtype in enumerate(dtypes):
        ids.setdefault(dtype.id, []).append(i)
    return [*ids.values()]


def check_tensors(tensors: list[TensorRecord], tables: TablePool, check_plan: PlanChecker) -> None:
    """As `check_tensor`, of tensors of a single row and segment of one tile: of all of a dtype at
    once.
    """
    for ids in by_dtype(t.coded_dtype for t in tensors):
        some = [tensors[i] for i in ids]
        columns = joined_columns([t.segments for t in some])
        if columns is not None:
            spans = Spans.of(np.array([t.geometry.cols for t in some], np.int64))
            plan = SegmentPlan(some[0].coded_dtype, spans, columns, tables)
            with suppress(DecodeError):  # each will say what is wrong with it
                check_plan(plan)
                if np.diff(plan.offsets).tolist() == [t.payload_nbytes for t in some]:
                    continue
        for t in some:
            check_tensor(t, tables, check_plan)


def check_geometry(g: Geometry) -> None:
    """Rules R6.5 and R6.7 on segment and tile sizes.

    Raises
    ------
    DecodeError
        ``bad_range``
    """
    if min(g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols) < 1:
        raise fail("bad_range", "a segment or tile size is 0")
    if g.segment_rows * g.segment_cols > MAX_SEGMENT_ELEMENTS:
        raise fail("bad_range", f"segments of more than {MAX_SEGMENT_ELEMENTS} elements")
    for segment, tile in ((g.segment_rows, g.tile_rows), (g.segment_cols, g.tile_cols)):
        if segment % tile or (tile < MIN_TILE and tile != segment):
            raise fail(
                "bad_range",
                f"tiles of {g.tile_rows} x {g.tile_cols} do not fit segments of {g.segment_rows} x "
                f"{g.segment_cols}",
            )


def check_plan(plan: SegmentPlan) -> None:
    """Rules R10.3 to R10.9 on the columns of a segment table: what a kernel may rely on.

    Raises
    ------
    DecodeError
        ``bad_value``, ``bad_range`` or ``unsupported_coder``
    """
    dtype, s, raw, pairs = plan.dtype, plan.segments, plan.is_raw, plan.is_pairs

    def require(holds: NDArray[np.bool_], code: str, message: str) -> None:
        if not holds.all():
            raise fail(code, f"segment {int(np.argwhere(~holds)[0][-1])}: {message}")

    require(s.layout <= LAST_LAYOUT, "unsupported_coder", "reserved layout")
    require(_IS_CODER[s.coder], "unsupported_coder", "reserved coder")
    require(
        IS_MODE[s.prediction] | (s.prediction == PER_TILE), "unsupported_coder", "reserved mode"
    )
    if not dtype.has_pairs:
        require(~pairs, "bad_value", "layout PAIRS on a dtype that has none")
    windowed = pairs & (dtype.word_nbytes > 1)
    require(windowed | (s.base == 0), "bad_value", "a window base where there is no window")
    require(s.base <= MAX_WINDOW_BASE, "bad_value", "window base above 240")
    require(
        s.n_patches <= plan.n_elements * windowed,
        "bad_range",
        "more patches than words, or where there is no window",
    )
    there = np.array([~raw if p < dtype.word_nbytes else pairs for p in range(dtype.n_planes)])
    blank = s.coder | s.prediction | s.table | s.n_units == 0
    require(there | blank, "bad_value", "a plane that is not there has columns that are not 0")
    plain, streams, context = s.prediction == 0, plan.is_stream, s.coder == Coder.CONTEXT.value
    require(streams | plain, "bad_value", "a mode on a plane that is no stream")
    require(~pairs | plain, "bad_value", "a mode with layout PAIRS")
    limit = np.where(streams, len(plan.tables), np.where(s.coder == Coder.CONSTANT.value, 256, 1))
    if context.any():
        np.copyto(limit, len(plan.tables.maps), where=context)
    require(s.table < limit, "bad_range", "table, context map or constant out of range")
    if context[0].any():
        kinds = plan.tables.map_kinds[np.where(context[0], s.table[0], 0)]
        require(
            ~(context[0] & (kinds == ContextKind.PLANE.value)),
            "bad_value",
            "plane 0 with itself as context",
        )
    most = rans.max_stream_nbytes(plan.plane_nbytes) // rans.UNIT
    require(
        (s.n_units <= most * streams) & (s.n_units >= _HEAD_UNITS * streams),
        "bad_range",
        "the size of a stream is out of range",
    )


def write_tables(tables: TablePool) -> bytes:
    """The body of a TABLES record (R4.20)."""
    return struct.pack("<H", len(tables)) + b"".join(t.serialised for t in tables.tables)


def write_contexts(tables: TablePool) -> bytes:
    """The body of a CONTEXTS record (R4.25)."""
    maps = [
        bytes([m.kind, len(m.tables)]) + m.class_of + struct.pack(f"<{len(m.tables)}H", *m.tables)
        for m in tables.maps
    ]
    return struct.pack("<H", len(maps)) + b"".join(maps)


def write_metadata(metadata: dict[str, str]) -> bytes:
    """The body of a METADATA record (R4.23)."""
    texts = [text.encode() for pair in metadata.items() for text in pair]
    return struct.pack("<I", len(metadata)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)


def read_tables_record(body: Cursor, read: TableReader, memory: Memory) -> TablePool:
    """The body of a TABLES record (R4.20)."""
    (n,) = body.unpack("<H")
    memory.take(n * TABLE_NBYTES, f"{n} tables")
    data = body.take(body.left)
    tables, at = read(data, 0, n)
    if at != len(data):
        raise fail("bad_range", "bytes are left over after the tables")
    return TablePool(tables)


def read_contexts(body: Cursor, tables: TablePool, memory: Memory) -> list[ContextMap]:
    """The body of a CONTEXTS record (R4.25)."""
    (n,) = body.unpack("<H")
    memory.take(n * CONTEXT_MAP_NBYTES, f"{n} context maps")
    maps: list[ContextMap] = []
    for number in range(n):
        kind, n_classes = body.unpack("<BB")
        if kind not in N_CONTEXTS:
            raise fail("unsupported_coder", f"context map {number} is of kind {kind}")
        if not 1 <= n_classes <= MAX_CLASSES:
            raise fail("bad_range", f"context map {number} has {n_classes} classes")
        class_of, ids = body.take(N_CONTEXTS[ContextKind(kind)]), body.unpack(f"<{n_classes}H")
        if max(class_of) >= n_classes or max(ids) >= len(tables):
            raise fail(
                "bad_range", f"context map {number} names a class or table that is not there"
            )
        if len({tables[i].prob_bits for i in ids}) > 1:
            raise fail("bad_value", f"the tables of context map {number} have different sums")
        maps.append(ContextMap(kind, class_of, ids))
    body.done("the context maps")
    return maps


def read_metadata(body: Cursor, memory: Memory) -> dict[str, str]:
    """The body of a METADATA record (R4.23)."""
    (n,) = body.unpack("<I")
    if 8 * n > body.left:
        raise fail("bad_range", f"{n} pairs; the record has room for {body.left // 8}")
    memory.take(n * PAIR_NBYTES, f"{n} pairs of metadata")
    pairs: dict[str, str] = {}
    for _ in range(n):
        key = body.text(body.unpack("<I")[0])
        if key in pairs:
            raise fail("bad_name", f"the metadata key {key!r} occurs twice")
        pairs[key] = body.text(body.unpack("<I")[0])
    body.done("the metadata")
    return pairs
