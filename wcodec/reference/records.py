"""Index records, read and written: tables, contexts, metadata, tensors. Spec: 4.3 to 4.5."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import DecodeError, within
from wcodec.reference import rans
from wcodec.reference.columns import (
    Stored,
    StoredTable,
    concatenated,
    joined_columns,
    read_column,
    stored_columns,
    write_column,
    write_columns,
)
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
from wcodec.reference.sparse import GAP_SKIP
from wcodec.reference.tables import (
    MAX_CLASSES,
    N_CONTEXTS,
    ContextKind,
    ContextMap,
    TablePool,
    TableReader,
)
from wcodec.reference.tensors import GAP_DTYPE, Lists, TensorRecord
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
SPARSE: Final = 4  #: flag of a tensor (12.1)
_LAST_DIFFERENCE: Final = int(max(Difference))

_HEAD_UNITS: Final = rans.HEAD_NBYTES // rans.UNIT


def write_tensor(t: TensorRecord) -> bytes:
    """The body of a TENSOR record (R4.30)."""
    name, dtype_name, g = t.name.encode(), t.dtype_name.encode(), t.geometry
    fixed = TENSOR.pack(
        t.payload_offset, t.payload_nbytes, t.crc32, t.dtype.id, len(t.shape), t.row_rank, 0,
        g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols,
        t.difference | (SPARSE if t.lists is not None else 0), len(name), len(dtype_name), 0,
    )  # fmt: skip
    parts = [fixed, struct.pack(f"<{len(t.shape)}Q", *t.shape), name, dtype_name]
    if t.lists is not None:
        parts += _written_lists(t.lists)
    elif g.n_segments:
        parts += _written_segments(t)
    return b"".join(parts)


def _written_segments(t: TensorRecord) -> list[bytes]:
    return [t.segment_crc32.astype("<u4").tobytes(), write_columns(t.segments)]


def _written_lists(lists: Lists) -> list[bytes]:
    """The segment table of a sparse tensor (R12.8)."""
    parts = [lists.n_listed.astype("<u4").tobytes()]
    if lists.touched.size:
        n_gaps = lists.gaps.geometry.n_elements()
        parts += [write_column(n_gaps), lists.words_crc32.astype("<u4").tobytes()]
        parts += [data for t in lists.parts for data in _written_segments(t)]
    return parts


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
        difference, is_sparse = _read_flags(flags, reserved, has_base)
        is_plain = difference == Difference.NONE
        if is_sparse and (is_plain or row_rank or (t_rows, t_cols) != (s_rows, s_cols)):
            raise fail(
                "bad_value",
                "a sparse tensor that is no difference, or no row of segments of a tile",
            )
        if dtype_id not in BY_ID:
            raise fail("unsupported_coder", f"dtype id {dtype_id}")
        if order != 0:
            raise fail("unsupported_coder", f"element order {order}")
        dtype = BY_ID[dtype_id]
        rows, cols = matrix_view(shape, row_rank, dtype.words_per_element)
        if math.prod([d or 1 for d in shape]) * dtype.nbytes > MAX_DATA_NBYTES:  # R4.35
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
        coded, lists = coded_dtype(dtype, difference), None
        if is_sparse:  # segments are those of its lists
            lists, n = _read_lists(body, index, name, geometry, coded, memory), 0
        else:
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
            difference, lists=lists,
        )  # fmt: skip
    except DecodeError as e:
        e.tensor = name
        raise


def _read_flags(flags: int, reserved: int, has_base: bool) -> tuple[Difference, bool]:
    """The difference of a tensor, and whether it is sparse (R4.31)."""
    if flags & ~7 or reserved:
        raise fail("bad_value", "reserved bits of the tensor record are set")
    kind = flags & 3
    if kind > _LAST_DIFFERENCE or (kind and not has_base):
        where = "" if has_base else ", in a file that has no base"
        raise fail("bad_value", f"difference {kind}{where}")
    return Difference(kind) if kind else Difference.NONE, flags & SPARSE > 0


def _read_lists(
    body: Cursor, index: Bytes, name: str, geometry: Geometry, coded: DType, memory: Memory
) -> Lists:
    """The segment table of a sparse tensor (R12.8, R12.9), but for the plans of its lists."""
    memory.take_tensor(geometry.n_segments, 1)
    n_listed = body.array("<u4", geometry.n_segments).astype(np.uint32)
    room, listed = geometry.n_elements()[n_listed > 0], n_listed[n_listed > 0].astype(np.int64)
    k = listed.size
    if k == 0:
        body.done("the segment table")
        return Lists.none(name, coded, n_listed)
    n_gaps = np.empty(k, np.uint32)
    read_column(body, n_gaps)
    most = listed + (room - listed) // GAP_SKIP
    if ((listed > room) | (n_gaps < listed) | (n_gaps > most)).any():
        raise fail("bad_range", "more words, or gaps, are listed than a segment has")
    words_crc32 = body.array("<u4", k).astype(np.uint32)
    crc32s, segments = list[NDArray[np.uint32]](), list[SegmentTable]()
    for dtype in (GAP_DTYPE, coded):
        memory.take_tensor(k, dtype.n_planes)
        crc32s.append(body.array("<u4", k).astype(np.uint32))
        segments.append(stored_columns(body, index, k, dtype.n_planes))
    body.done("the segment table")
    both = (segments[0], segments[1]), (crc32s[0], crc32s[1])
    return Lists.of(name, coded, n_listed, n_gaps, words_crc32, *both)


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


def check_lists(tensors: list[TensorRecord], tables: TablePool, check_plan: PlanChecker) -> None:
    """As `check_tensor`, of sparse tensors: of all their gaps at once, and of all listed words of a
    dtype. Enters where these are.
    """
    parts = [p for t in tensors if t.lists for p in t.lists.parts if p.segment_crc32.size]
    nbytes = dict[int, int]()
    for ids in by_dtype(part.dtype for part in parts):
        some = [parts[i] for i in ids]
        plan = joined_plan(some, tables)
        try:
            check_plan(plan)
        except DecodeError:
            for part in some:
                with within(tensor=part.name):
                    check_plan(part.plan(tables))
            raise
        ends = np.cumsum([part.segment_crc32.size for part in some])
        sizes = np.diff(plan.offsets[np.append(0, ends)]).tolist()
        nbytes.update(zip((id(part) for part in some), sizes, strict=True))
    for t in tensors:
        if t.lists is not None:
            gaps, words = (nbytes.get(id(part), 0) for part in t.lists.parts)
            if t.payload_nbytes != gaps + words:
                message = "the lists' sizes do not sum to the payload's"
                raise fail("bad_range", message, tensor=t.name)
            t.lists.place(t.payload_offset, (gaps, words))


def joined_plan(parts: list[TensorRecord], tables: TablePool) -> SegmentPlan:
    """The plan of tensors of one dtype, each a row of segments, one after another."""
    if len(parts) == 1:
        return parts[0].plan(tables)
    spans = Spans.of(np.concatenate([part.geometry.n_elements() for part in parts]))
    return SegmentPlan(parts[0].dtype, spans, concatenated([t.segments for t in parts]), tables)


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
