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
from wcodec.reference.entropy import TablePool
from wcodec.reference.planes import Bytes, DType, Layout, Words, merge, pack_nibbles, split, split_window, unpack_nibbles
from wcodec.reference.prediction import N_MODES, PER_TILE, Mode, predict, reconstruct
from wcodec.reference.tiles import Geometry, element_order, tiles

ALIGN: Final = 16  #: bytes; every part of a segment record starts at a multiple of it (R10.2)


class Coder(IntEnum):
    """How a plane is stored (R10.5)."""

    RAW = 0  #: its bytes
    CONSTANT = 1  #: nothing: the value stands in the column `table`
    RANS = 2  #: an interleaved rANS stream


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
        return SegmentTable(*(np.ascontiguousarray(getattr(self, f.name)[..., ids]) for f in fields(self)))

    @staticmethod
    def concatenate(parts: list[SegmentTable]) -> SegmentTable:
        """Tables one behind another."""
        return SegmentTable(*(np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(SegmentTable)))


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
    """

    dtype: DType
    geometry: Geometry
    segments: SegmentTable
    tables: TablePool
    fill: NDArray[np.uint8] | None = None
    modes: Bytes | None = None

    def encoded(self, n_units: NDArray[np.uint32], n_patches: NDArray[np.uint32]) -> SegmentPlan:
        """This plan for a decoder, given what encoding has found."""
        return SegmentPlan(self.dtype, self.geometry, replace(self.segments, n_units=n_units, n_patches=n_patches), self.tables)

    @cached_property
    def n_elements(self) -> NDArray[np.int64]:
        """Words of each segment."""
        heights, widths = self.geometry.sizes()
        return heights * widths

    @cached_property
    def plane_nbytes(self) -> NDArray[np.int64]:
        """Decoded bytes of each plane of each segment, shape (n_planes, n): also its symbols (R10.3)."""
        n = self.n_elements
        sizes = np.broadcast_to(n, (self.dtype.n_planes, n.size)).copy()
        pairs, half = self.segments.layout == Layout.PAIRS, (n + 1) // 2
        sizes[0, pairs] = half[pairs]
        if self.dtype.word_nbytes == 1:
            sizes[1] = np.where(pairs, half, 0)
        sizes[:, self.segments.layout == Layout.RAW] = 0
        return sizes

    @cached_property
    def modes_nbytes(self) -> NDArray[np.int64]:
        """Bytes of tile modes in each record, without padding (R10.4)."""
        return np.asarray((self.segments.prediction == PER_TILE).sum(axis=0) * self.geometry.tile_counts(), np.int64)

    @cached_property
    def modes_offsets(self) -> NDArray[np.int64]:
        """Where each segment's modes start in `modes`; one more entry than segments."""
        return _ends(self.modes_nbytes)

    @cached_property
    def stream_nbytes(self) -> NDArray[np.int64]:
        """Stored bytes of each plane, padded, shape (n_planes, n) (R10.6)."""
        raw, rans = self.segments.coder == Coder.RAW, self.segments.coder == Coder.RANS
        units = self.segments.n_units.astype(np.int64) * entropy.UNIT
        return np.where(raw, padded(self.plane_nbytes), np.where(rans, units, 0))

    @cached_property
    def words_nbytes(self) -> NDArray[np.int64]:
        """Bytes of the words of a `Layout.RAW` segment, padded; 0 for the others."""
        return np.where(self.segments.layout == Layout.RAW, padded(self.n_elements * self.dtype.word_nbytes), 0)

    @cached_property
    def plane_offsets(self) -> NDArray[np.int64]:
        """Where each plane's stream starts in the payload, shape (n_planes, n)."""
        before = np.cumsum(self.stream_nbytes, axis=0) - self.stream_nbytes
        return np.asarray(self.offsets[:-1] + padded(self.modes_nbytes) + before, np.int64)

    @cached_property
    def patch_offsets(self) -> NDArray[np.int64]:
        """Where each segment's patches start in the payload."""
        return self.offsets[1:] - padded(self.segments.n_patches.astype(np.int64) * 4)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record starts in the payload, and at the end where the last one stops (R10.1)."""
        patches = padded(self.segments.n_patches.astype(np.int64) * 4)
        return _ends(self.words_nbytes + padded(self.modes_nbytes) + self.stream_nbytes.sum(axis=0) + patches)


def padded(nbytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes rounded up to a multiple of 16."""
    return np.asarray(-(-nbytes // ALIGN) * ALIGN, np.int64)


def _ends(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


# ---- encoding ----------------------------------------------------------------------------------------------------------
def segment_planes(plan: SegmentPlan, words: Words, k: int) -> tuple[list[Bytes], NDArray[np.uint32]]:
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
        return [pack_nibbles(planes[0] >> np.uint8(4), fill), pack_nibbles(planes[0] & np.uint8(15))], none
    codes, patches = split_window(planes[0], int(plan.segments.base[k]), fill)
    return [pack_nibbles(codes, fill), *(np.ascontiguousarray(p) for p in planes[1:])], patches


def each_tile(plan: SegmentPlan, k: int, plane: Bytes, modes: Bytes, step: Callable[[Bytes, int], Bytes]) -> Bytes:
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


def encode_segments(plan: SegmentPlan, words: Words) -> tuple[Bytes, NDArray[np.uint32], NDArray[np.uint32]]:
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
    modes: list[Bytes] = []
    patches: list[NDArray[np.uint32]] = []
    residuals, where = [], []
    for k in range(n):
        modes.append(np.empty(0, np.uint8) if plan.modes is None else plan.modes[plan.modes_offsets[k] : plan.modes_offsets[k + 1]])
        if segments.layout[k] == Layout.RAW:
            streams[k, 0] = np.ascontiguousarray(words[plan.geometry.rectangle(k)]).astype(plan.dtype.word_type).view(np.uint8).reshape(-1)
            patches.append(np.empty(0, np.uint32))
            continue
        planes, found = segment_planes(plan, words, k)
        patches.append(found)
        for p, (plane, plane_mode) in enumerate(zip(planes, plane_modes(plan, k, modes[k]), strict=False)):
            if segments.coder[p, k] == Coder.RAW:
                streams[k, p] = plane
            elif segments.coder[p, k] == Coder.RANS:
                residuals.append(plane if plane_mode.tolist() == [Mode.NONE] else each_tile(plan, k, plane, plane_mode, predict))
                where.append((k, p))
    n_units = np.zeros(segments.n_units.shape, np.uint32)
    ids = np.array([segments.table[p, k] for k, p in where], np.int64)
    for (k, p), stream in zip(where, entropy.encode_streams(residuals, ids, plan.tables), strict=True):
        streams[k, p], n_units[p, k] = stream, stream.size // entropy.UNIT
    parts: list[Bytes] = []
    for k in range(n):
        own = [streams[k, p] for p in range(plan.dtype.n_planes) if (k, p) in streams]
        for part in (modes[k], *own, patches[k].astype("<u4").view(np.uint8)):
            parts += [part, np.zeros(-part.size % ALIGN, np.uint8)]
    payload = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return payload, n_units, np.array([p.size for p in patches], np.uint32)


def histogram(
    words: Words, geometry: Geometry, dtype: DType, *,
    segments: NDArray[np.int64] | None = None, planes: tuple[int, ...] | None = None, mode: int = 0, base: int | None = None, fill: int = 0,
) -> NDArray[np.int64]:  # fmt: skip
    """Counts of the symbols of each plane; see `wcodec.backends.protocol.Backend.histogram`."""
    ids = np.arange(geometry.n_segments) if segments is None else segments
    table = SegmentTable.zeros(geometry.n_segments, dtype.n_planes)
    table.layout[:] = Layout.BYTES if base is None else Layout.PAIRS
    table.base[:] = base or 0
    plan = SegmentPlan(dtype, geometry, table, TablePool(), np.full(geometry.n_segments, fill, np.uint8))
    as_bytes = replace(plan, segments=replace(table, layout=np.full(geometry.n_segments, Layout.BYTES, np.uint8)))
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
                plane = each_tile(plan, k, plane, np.array([mode], np.uint8), predict)
            counts[i, p] = np.bincount(plane, minlength=256)
    return counts


# ---- decoding ----------------------------------------------------------------------------------------------------------
def decode_segments(plan: SegmentPlan, payload: Bytes, out: Words) -> NDArray[np.uint8]:
    """Decode all segments of a plan into `out`, of shape ``(geometry.rows, geometry.cols)``.

    Returns
    -------
    uint8 of shape (n,): a `Status` a segment. What `out` holds of a segment that is not `Status.OK` is unspecified.
    """
    n, segments = plan.geometry.n_segments, plan.segments
    status = np.zeros(n, np.uint8)
    where = [(p, k) for p, k in np.argwhere(segments.coder == Coder.RANS).tolist()]
    at = [int(plan.plane_offsets[p, k]) for p, k in where]
    streams = [payload[a : a + int(plan.stream_nbytes[p, k])] for a, (p, k) in zip(at, where, strict=True)]
    ids = np.array([segments.table[p, k] for p, k in where], np.int64)
    sizes = np.array([plan.plane_nbytes[p, k] for p, k in where], np.int64)
    symbols, good = entropy.decode_streams(streams, sizes, ids, plan.tables)
    coded = dict(zip(where, symbols, strict=True))
    for k in sorted({k for (_, k), g in zip(where, good, strict=True) if not g}):
        status[k] = Status.BAD_STREAM
    for k in range(n):
        if status[k] == Status.OK:
            status[k] = _decode_segment(plan, payload, coded, k, out[plan.geometry.rectangle(k)])
    return status


def _decode_segment(plan: SegmentPlan, payload: Bytes, coded: dict[tuple[int, int], Bytes], k: int, out: Words) -> Status:
    dtype, segments, start = plan.dtype, plan.segments, int(plan.offsets[k])
    if segments.layout[k] == Layout.RAW:
        stored = payload[start : start + out.size * dtype.word_nbytes]
        out[...] = stored.view(dtype.word_type).reshape(out.shape)
        return Status.OK
    record_modes = payload[start : start + int(plan.modes_nbytes[k])]
    if (record_modes >= N_MODES).any():
        return Status.BAD_TILE_MODE
    planes = []
    for p, modes in enumerate(plane_modes(plan, k, record_modes)):
        size, at = int(plan.plane_nbytes[p, k]), int(plan.plane_offsets[p, k])
        if segments.coder[p, k] == Coder.RANS:
            plane = coded[p, k]
            planes.append(plane if modes.tolist() == [Mode.NONE] else each_tile(plan, k, plane, modes, reconstruct))
        elif segments.coder[p, k] == Coder.CONSTANT:
            planes.append(np.full(size, segments.table[p, k], np.uint8))
        else:
            planes.append(payload[at : at + size])
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
