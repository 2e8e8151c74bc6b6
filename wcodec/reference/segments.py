"""Segment records: what the segment table says of them, where their parts lie, how they are coded. Spec: chapter 10."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import entropy
from wcodec.reference.entropy import ContextKind, ContextMap, TablePool
from wcodec.reference.planes import (
    Bytes,
    DType,
    Layout,
    Words,
    merge,
    pack_nibbles,
    split,
    split_window,
    unpack_nibbles,
)
from wcodec.reference.prediction import IS_MODE, PER_TILE, Mode, residuals, restore
from wcodec.reference.tiles import Geometry, element_order, tiles

ALIGN: Final = 16  #: bytes; every part of a segment record starts at a multiple of it (R10.2)


class Coder(IntEnum):
    """How a plane is stored (R10.5)."""

    RAW = 0  #: its bytes
    CONSTANT = 1  #: nothing: the value stands in the column `table`
    RANS = 2  #: an interleaved rANS stream
    #: the same, with a table for each class of contexts; the column `table` names a context map
    CONTEXT = 4


class Status(IntEnum):
    """What a decoder says of a segment."""

    OK = 0
    BAD_STREAM = 1
    BAD_PATCH = 2
    BAD_TILE_MODE = 3


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """The columns of a tensor record (R4.36), one entry a segment; those of planes have shape (n_planes, n)."""

    layout: NDArray[np.uint8]
    base: NDArray[np.uint8]
    n_patches: NDArray[np.uint32]
    coder: NDArray[np.uint8]
    table: NDArray[np.uint32]
    prediction: NDArray[np.uint8]
    n_units: NDArray[np.uint32]

    @classmethod
    def zeros(cls, n: int, n_planes: int) -> SegmentTable:
        """A table of `n` segments that are all `Layout.RAW`."""
        one, planes = (n,), (n_planes, n)
        u1, u4 = np.uint8, np.uint32
        return cls(
            np.zeros(one, u1), np.zeros(one, u1), np.zeros(one, u4),
            np.zeros(planes, u1), np.zeros(planes, u4), np.zeros(planes, u1), np.zeros(planes, u4),
        )  # fmt: skip

    def take(self, ids: NDArray[np.int64]) -> SegmentTable:
        """Entries of some segments."""
        return SegmentTable(
            *(np.ascontiguousarray(getattr(self, f.name)[..., ids]) for f in fields(self))
        )

    @staticmethod
    def concatenate(parts: list[SegmentTable]) -> SegmentTable:
        """Tables one behind another."""
        return SegmentTable(
            *(
                np.concatenate([getattr(p, f.name) for p in parts], axis=-1)
                for f in fields(SegmentTable)
            )
        )


@dataclass(frozen=True)
class SegmentPlan:
    """All that a kernel needs to know of some segments: a sub-grid of a tensor's matrix.

    Attributes
    ----------
    dtype, geometry
        Of the words; `geometry` covers exactly these segments.
    segments
        Their columns of the segment table. For encoding `n_units` is 0: it is a result.
    tables
        The table pool of the file.
    fill
        Encoding only: uint8 of shape (n,), the 4-bit code that stands for a word outside the window.
    modes
        Encoding only: for planes with prediction `PER_TILE`, the modes of all tiles: segment by segment, in each plane by plane.
    scales
        Encoding only: the packed classes of rows and columns (R10.10) of the segments that have them, one behind another.
    """

    dtype: DType
    geometry: Geometry
    segments: SegmentTable
    tables: TablePool
    fill: NDArray[np.uint8] | None = None
    modes: Bytes | None = None
    scales: Bytes | None = None

    def encoded(self, n_units: NDArray[np.uint32], n_patches: NDArray[np.uint32]) -> SegmentPlan:
        """This plan for a decoder, given what encoding has found."""
        return SegmentPlan(
            self.dtype,
            self.geometry,
            replace(self.segments, n_units=n_units, n_patches=n_patches),
            self.tables,
        )

    @cached_property
    def is_raw(self) -> NDArray[np.bool_]:
        """Which segments are `Layout.RAW`."""
        return np.asarray(self.segments.layout == Layout.RAW.value)

    @cached_property
    def is_pairs(self) -> NDArray[np.bool_]:
        """Which segments are `Layout.PAIRS`."""
        return np.asarray(self.segments.layout == Layout.PAIRS.value)

    @cached_property
    def is_stream(self) -> NDArray[np.bool_]:
        """Which planes are `Coder.RANS` or `Coder.CONTEXT`, shape (n_planes, n)."""
        return np.asarray(
            (self.segments.coder == Coder.RANS.value) | (self.segments.coder == Coder.CONTEXT.value)
        )

    @property
    def n_elements(self) -> NDArray[np.int64]:
        """Words of each segment; not to be changed."""
        return self.geometry.n_elements()

    @cached_property
    def plane_nbytes(self) -> NDArray[np.int64]:
        """Decoded bytes of each plane of each segment, shape (n_planes, n): also its symbols (R10.3)."""
        n = self.n_elements
        sizes, half = np.empty((self.dtype.n_planes, n.size), np.int64), (n + 1) // 2
        sizes[:] = n
        np.copyto(sizes[0], half, where=self.is_pairs)
        if self.dtype.word_nbytes == 1:
            sizes[1] = half * self.is_pairs
        np.copyto(sizes, 0, where=self.is_raw)
        return sizes

    @cached_property
    def modes_nbytes(self) -> NDArray[np.int64]:
        """Bytes of tile modes in each record, without padding (R10.4)."""
        per_tile = self.segments.prediction == PER_TILE
        if not per_tile.any():
            return np.zeros(per_tile.shape[1], np.int64)
        return np.asarray(per_tile.sum(axis=0) * self.geometry.tile_counts(), np.int64)

    @cached_property
    def modes_offsets(self) -> NDArray[np.int64]:
        """Where each segment's modes start in `modes`; one more entry than segments."""
        return _ends(self.modes_nbytes)

    @cached_property
    def scale_nbytes(self) -> NDArray[np.int64]:
        """Bytes of the classes of rows and columns in each record, without padding (R10.10)."""
        context = self.segments.coder == Coder.CONTEXT.value
        if not self.tables.maps or not context.any():
            return np.zeros(self.geometry.n_segments, np.int64)
        by_scale = np.array([m.kind == ContextKind.SCALE for m in self.tables.maps])
        used = (context & by_scale[np.where(context, self.segments.table, 0)]).any(axis=0)
        heights, widths = self.geometry.sizes()
        return np.where(used, (heights + widths + 3) // 4, 0)

    @cached_property
    def scale_offsets(self) -> NDArray[np.int64]:
        """Where each segment's classes start in `scales`; one more entry than segments."""
        return _ends(self.scale_nbytes)

    @cached_property
    def head_nbytes(self) -> NDArray[np.int64]:
        """Bytes of each record before its first plane, padded: tile modes, classes of rows and columns."""
        return padded(self.modes_nbytes) + padded(self.scale_nbytes)

    @cached_property
    def stream_nbytes(self) -> NDArray[np.int64]:
        """Stored bytes of each plane, padded, shape (n_planes, n) (R10.6)."""
        # 0 of planes that are not streams
        sizes = self.segments.n_units.astype(np.int64) * entropy.UNIT
        np.copyto(sizes, padded(self.plane_nbytes), where=self.segments.coder == Coder.RAW.value)
        return sizes

    @cached_property
    def words_nbytes(self) -> NDArray[np.int64]:
        """Bytes of the words of a `Layout.RAW` segment, padded; 0 for the others."""
        return padded(self.n_elements * self.dtype.word_nbytes) * self.is_raw

    @cached_property
    def patches_nbytes(self) -> NDArray[np.int64]:
        """Bytes of each segment's patches, padded."""
        return padded(self.segments.n_patches.astype(np.int64) * 4)

    @cached_property
    def plane_offsets(self) -> NDArray[np.int64]:
        """Where each plane's stream starts in the payload, shape (n_planes, n)."""
        before = np.cumsum(self.stream_nbytes, axis=0) - self.stream_nbytes
        return np.asarray(self.offsets[:-1] + self.head_nbytes + before, np.int64)

    @cached_property
    def patch_offsets(self) -> NDArray[np.int64]:
        """Where each segment's patches start in the payload."""
        return self.offsets[1:] - self.patches_nbytes

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record starts in the payload, and at the end where the last one stops (R10.1)."""
        return _ends(
            self.words_nbytes
            + self.head_nbytes
            + self.stream_nbytes.sum(axis=0)
            + self.patches_nbytes
        )


def padded(nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes rounded up to a multiple of 16."""
    return np.asarray((nbytes + (ALIGN - 1)) & -ALIGN, np.int64)


def _ends(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    ends = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


# ---- encoding ----------------------------------------------------------------------------------------------------------
def segment_planes(
    plan: SegmentPlan, words: Words, k: int
) -> tuple[list[Bytes], NDArray[np.uint32]]:
    """Planes of segment `k` before prediction, in element order, and its patches (R10.3)."""
    rows, cols = plan.geometry.rectangle(k)
    segment = words[rows, cols]
    order = element_order(*segment.shape, plan.geometry.tile_rows, plan.geometry.tile_cols)
    planes = split(segment.reshape(-1)[order], plan.dtype)
    none = np.empty(0, np.uint32)
    if plan.segments.layout[k] == Layout.BYTES:
        return [np.ascontiguousarray(p) for p in planes], none
    fill = 0 if plan.fill is None else int(plan.fill[k])
    if plan.dtype.word_nbytes == 1:
        return [
            pack_nibbles(planes[0] >> np.uint8(4), fill),
            pack_nibbles(planes[0] & np.uint8(15)),
        ], none
    codes, patches = split_window(planes[0], int(plan.segments.base[k]), fill)
    return [pack_nibbles(codes, fill), *(np.ascontiguousarray(p) for p in planes[1:])], patches


def each_tile(
    plan: SegmentPlan, k: int, plane: Bytes, modes: Bytes, step: Callable[[Bytes, int], Bytes]
) -> Bytes:
    """Apply `step(tile, mode)` to each tile of a plane in element order; `modes` holds one mode, or one a tile."""
    rows, cols = plan.geometry.rectangle(k)
    shape = rows.stop - rows.start, cols.stop - cols.start
    out, at = np.empty_like(plane), 0
    for i, (r, c) in enumerate(tiles(*shape, plan.geometry.tile_rows, plan.geometry.tile_cols)):
        height, width = r.stop - r.start, c.stop - c.start
        tile = plane[at : at + height * width].reshape(height, width)
        out[at : at + tile.size] = step(tile, int(modes[i % modes.size])).reshape(-1)
        at += tile.size
    return out


def plane_modes(plan: SegmentPlan, k: int, record_modes: Bytes) -> list[Bytes]:
    """Modes of each plane of segment `k`: an array of one mode, or of one a tile cut from `record_modes`."""
    n_tiles, at, out = int(plan.geometry.tile_counts()[k]), 0, []
    for mode in plan.segments.prediction[:, k].tolist():
        if mode == PER_TILE:
            out.append(record_modes[at : at + n_tiles])
            at += n_tiles
        else:
            out.append(np.array([mode], np.uint8))
    return out


def tables_of(plan: SegmentPlan, p: int, k: int) -> tuple[int, ...]:
    """Numbers of the tables of a coded plane: one, or one for each class."""
    number = int(plan.segments.table[p, k])
    return (
        plan.tables.maps[number].tables if plan.segments.coder[p, k] == Coder.CONTEXT else (number,)
    )


def unpack_scales(packed: Bytes, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Classes of the rows and of the columns of a segment (R10.10): two bits each, four to a byte, the lowest first."""
    two_bits = (packed[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)).reshape(-1)
    return two_bits[:height], two_bits[height : height + width]


def pack_scales(rows: Bytes, cols: Bytes) -> Bytes:
    """Inverse of `unpack_scales`."""
    both = np.concatenate([rows, cols, np.zeros(-(rows.size + cols.size) % 4, np.uint8)]).reshape(
        -1, 4
    )
    return np.asarray(
        np.bitwise_or.reduce(both << np.arange(0, 8, 2, dtype=np.uint8), axis=1), np.uint8
    )


def contexts_of(
    plan: SegmentPlan, context_map: ContextMap, p: int, k: int, scales: Bytes, first: Bytes
) -> Bytes:
    """Context of each symbol of plane `p` of segment `k` (R9.13); `scales` is that part of its record, `first` its plane 0."""
    if context_map.kind == ContextKind.PLANE:
        if plan.segments.layout[k] == Layout.PAIRS and plan.dtype.word_nbytes > 1:
            return unpack_nibbles(first, int(plan.n_elements[k]))
        return first
    g = plan.geometry
    rows, cols = g.rectangle(k)
    height, width = rows.stop - rows.start, cols.stop - cols.start
    r, c = np.divmod(element_order(height, width, g.tile_rows, g.tile_cols), width)
    if plan.plane_nbytes[p, k] < r.size:  # two elements a symbol: the first one counts
        r, c = r[::2], c[::2]
    if context_map.kind == ContextKind.POSITION:
        return np.asarray(r % g.tile_rows % 8 * 8 + c % g.tile_cols % 8, np.uint8)
    of_rows, of_cols = unpack_scales(scales, height, width)
    return np.asarray(of_rows[r] * np.uint8(4) + of_cols[c], np.uint8)


def classes_of(plan: SegmentPlan, p: int, k: int, scales: Bytes, first: Bytes) -> Bytes | None:
    """Class of each symbol of a plane; ``None`` if it has a single table."""
    if plan.segments.coder[p, k] != Coder.CONTEXT:
        return None
    context_map = plan.tables.maps[int(plan.segments.table[p, k])]
    return np.frombuffer(context_map.class_of, np.uint8)[
        contexts_of(plan, context_map, p, k, scales, first)
    ]


def _part(data: Bytes | None, offsets: NDArray[np.int64], k: int) -> Bytes:
    return np.empty(0, np.uint8) if data is None else data[offsets[k] : offsets[k + 1]]


def encode_segments(
    plan: SegmentPlan, words: Words
) -> tuple[Bytes, NDArray[np.uint32], NDArray[np.uint32]]:
    """Encode all segments of a plan.

    Parameters
    ----------
    words
        Unsigned array of shape ``(geometry.rows, geometry.cols)``.

    Returns
    -------
    payload
        uint8: the records one behind another.
    n_units
        uint32 of shape (n_planes, n): 16-byte units of each rANS stream, else 0.
    n_patches
        uint32 of shape (n,).
    """
    n, segments = plan.geometry.n_segments, plan.segments
    streams: dict[tuple[int, int], Bytes] = {}
    heads: list[list[Bytes]] = []
    patches: list[NDArray[np.uint32]] = []
    symbols, tables, classes, where = (
        list[Bytes](),
        list[tuple[int, ...]](),
        list[Bytes | None](),
        list[tuple[int, int]](),
    )
    for k in range(n):
        modes, scales = (
            _part(plan.modes, plan.modes_offsets, k),
            _part(plan.scales, plan.scale_offsets, k),
        )
        heads.append([modes, scales])
        if segments.layout[k] == Layout.RAW:
            streams[k, 0] = (
                np.ascontiguousarray(words[plan.geometry.rectangle(k)])
                .astype(plan.dtype.word_type)
                .view(np.uint8)
                .reshape(-1)
            )
            patches.append(np.empty(0, np.uint32))
            continue
        planes, found = segment_planes(plan, words, k)
        patches.append(found)
        for p, (plane, plane_mode) in enumerate(
            zip(planes, plane_modes(plan, k, modes), strict=False)
        ):
            if segments.coder[p, k] == Coder.RAW:
                streams[k, p] = plane
            elif segments.coder[p, k] != Coder.CONSTANT:
                symbols.append(
                    plane
                    if plane_mode.tolist() == [Mode.NONE]
                    else each_tile(plan, k, plane, plane_mode, residuals)
                )
                tables.append(tables_of(plan, p, k))
                classes.append(classes_of(plan, p, k, scales, planes[0]))
                where.append((k, p))
    n_units = np.zeros(segments.n_units.shape, np.uint32)
    for (k, p), stream in zip(
        where, entropy.encode_streams(symbols, tables, plan.tables, classes), strict=True
    ):
        streams[k, p], n_units[p, k] = stream, stream.size // entropy.UNIT
    parts: list[Bytes] = []
    for k in range(n):
        own = [streams[k, p] for p in range(plan.dtype.n_planes) if (k, p) in streams]
        for part in (*heads[k], *own, patches[k].astype("<u4").view(np.uint8)):
            parts += [part, np.zeros(-part.size % ALIGN, np.uint8)]
    payload = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return payload, n_units, np.array([p.size for p in patches], np.uint32)


def histogram(
    words: Words,
    geometry: Geometry,
    dtype: DType,
    *,
    segments: NDArray[np.int64] | None = None,
    planes: tuple[int, ...] | None = None,
    mode: int = 0,
    base: int | None = None,
    fill: int = 0,
) -> NDArray[np.int64]:
    """Counts of the symbols of each plane; see `wcodec.backends.protocol.Backend.histogram`."""
    ids = np.arange(geometry.n_segments) if segments is None else segments
    table = SegmentTable.zeros(geometry.n_segments, dtype.n_planes)
    table.layout[:] = Layout.BYTES if base is None else Layout.PAIRS
    table.base[:] = base or 0
    plan = SegmentPlan(
        dtype, geometry, table, TablePool(), np.full(geometry.n_segments, fill, np.uint8)
    )
    as_bytes = replace(
        plan, segments=replace(table, layout=np.full(geometry.n_segments, Layout.BYTES, np.uint8))
    )
    nibbles = base is not None and dtype.word_nbytes == 1
    wanted = range(2 if nibbles else dtype.word_nbytes) if planes is None else planes
    counts = np.zeros((ids.size, len(wanted) + (base is not None and not nibbles), 256), np.int64)
    for i, k in enumerate(ids.tolist()):
        symbols, _ = segment_planes(plan, words, k)
        if nibbles:
            symbols = [symbols[p] for p in wanted]
        else:
            whole = symbols if base is None else segment_planes(as_bytes, words, k)[0]
            symbols = [*symbols[: int(base is not None)], *(whole[p] for p in wanted)]
        for p, plane in enumerate(symbols):
            if mode != Mode.NONE:
                plane = each_tile(plan, k, plane, np.array([mode], np.uint8), residuals)
            counts[i, p] = np.bincount(plane, minlength=256)
    return counts


# ---- decoding ----------------------------------------------------------------------------------------------------------
def decode_segments(plan: SegmentPlan, payload: Bytes, out: Words) -> NDArray[np.uint8]:
    """Decode all segments of a plan into `out`, of shape ``(geometry.rows, geometry.cols)``.

    Returns
    -------
    uint8 of shape (n,): a `Status` a segment. What `out` holds of a segment that is not `Status.OK` is unspecified.
    """
    status = np.zeros(plan.geometry.n_segments, np.uint8)
    coded: dict[tuple[int, int], Bytes] = {}
    rans, context = plan.segments.coder == Coder.RANS, plan.segments.coder == Coder.CONTEXT
    first = rans | (context & (np.arange(plan.dtype.n_planes) == 0)[:, None])
    _decode_planes(plan, payload, [(p, k) for p, k in np.argwhere(first).tolist()], coded, status)
    wrong_modes = {k for k in range(status.size) if not IS_MODE[_head(plan, payload, k)[0]].all()}
    rest = [
        (p, k)
        for p, k in np.argwhere(context & ~first).tolist()
        if k not in wrong_modes and status[k] == Status.OK
    ]
    _decode_planes(plan, payload, rest, coded, status)  # plane 0 may hold their contexts
    status[[k for k in wrong_modes if status[k] == Status.OK]] = Status.BAD_TILE_MODE
    for k in np.flatnonzero(status == Status.OK).tolist():
        status[k] = _decode_segment(plan, payload, coded, k, out[plan.geometry.rectangle(k)])
    return status


def _head(plan: SegmentPlan, payload: Bytes, k: int) -> tuple[Bytes, Bytes]:
    """Tile modes, and classes of rows and columns, of a record."""
    start = int(plan.offsets[k])
    behind = start + int(padded(plan.modes_nbytes[k : k + 1])[0])
    return payload[start : start + int(plan.modes_nbytes[k])], payload[
        behind : behind + int(plan.scale_nbytes[k])
    ]


def _decode_planes(
    plan: SegmentPlan,
    payload: Bytes,
    where: list[tuple[int, int]],
    coded: dict[tuple[int, int], Bytes],
    status: NDArray[np.uint8],
) -> None:
    """Decode the streams of some planes into `coded`, and restore the bytes behind their modes."""
    at = [int(plan.plane_offsets[p, k]) for p, k in where]
    streams = [
        payload[a : a + int(plan.stream_nbytes[p, k])] for a, (p, k) in zip(at, where, strict=True)
    ]
    classes: list[Bytes | None] = []
    for p, k in where:
        first = (
            _plane(plan, payload, coded, 0, k)
            if p > 0 and plan.segments.coder[p, k] == Coder.CONTEXT
            else streams[0]
        )
        classes.append(classes_of(plan, p, k, _head(plan, payload, k)[1], first))
    sizes = np.array([plan.plane_nbytes[p, k] for p, k in where], np.int64)
    symbols, good = entropy.decode_streams(
        streams, sizes, [tables_of(plan, p, k) for p, k in where], plan.tables, classes
    )
    for (p, k), plane, ends_well in zip(where, symbols, good.tolist(), strict=True):
        coded[p, k] = plane
        if not ends_well:
            status[k] = Status.BAD_STREAM
            continue
        modes = plane_modes(plan, k, _head(plan, payload, k)[0])[p]
        if modes.tolist() != [Mode.NONE] and IS_MODE[modes].all():
            coded[p, k] = each_tile(plan, k, plane, modes, restore)


def _plane(
    plan: SegmentPlan, payload: Bytes, coded: dict[tuple[int, int], Bytes], p: int, k: int
) -> Bytes:
    """The bytes of a plane, however it is stored."""
    size, at = int(plan.plane_nbytes[p, k]), int(plan.plane_offsets[p, k])
    if plan.segments.coder[p, k] == Coder.CONSTANT:
        return np.full(size, plan.segments.table[p, k], np.uint8)
    return payload[at : at + size] if plan.segments.coder[p, k] == Coder.RAW else coded[p, k]


def _decode_segment(
    plan: SegmentPlan, payload: Bytes, coded: dict[tuple[int, int], Bytes], k: int, out: Words
) -> Status:
    dtype, segments, start = plan.dtype, plan.segments, int(plan.offsets[k])
    if segments.layout[k] == Layout.RAW:
        stored = payload[start : start + out.size * dtype.word_nbytes]
        out[...] = stored.view(dtype.word_type).reshape(out.shape)
        return Status.OK
    planes = [_plane(plan, payload, coded, p, k) for p in range(dtype.n_planes)]
    if segments.layout[k] == Layout.PAIRS:
        patches = payload[plan.patch_offsets[k] :][: 4 * int(segments.n_patches[k])].view("<u4")
        index = (patches & np.uint32(0xFFFFFF)).astype(np.int64)
        if (index >= out.size).any() or (np.diff(index) <= 0).any():
            return Status.BAD_PATCH
        codes = unpack_nibbles(planes[0], out.size)
        if dtype.word_nbytes == 1:
            planes = [codes << np.uint8(4) | unpack_nibbles(planes[1], out.size)]
        else:
            planes[0] = codes + segments.base[k]
            planes[0][index] = patches >> np.uint32(24)
    words = merge(np.stack(planes[: dtype.word_nbytes]), dtype)
    raster = np.empty(out.size, dtype.word_type)
    raster[element_order(*out.shape, plan.geometry.tile_rows, plan.geometry.tile_cols)] = words
    out[...] = raster.reshape(out.shape)
    return Status.OK
