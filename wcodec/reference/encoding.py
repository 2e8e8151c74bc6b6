"""Segment records, encoded. Spec: chapter 10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import contexts, rans
from wcodec.reference.planes import (
    Bytes,
    DType,
    Layout,
    Words,
    pack_nibbles,
    patch_uncoded,
    split,
    split_window,
)
from wcodec.reference.prediction import Mode, residuals
from wcodec.reference.segments import (
    ALIGN,
    Coder,
    Record,
    SegmentPlan,
    SegmentTable,
    each_tile,
    plane_modes,
)
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry, element_order


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
    pairs = pack_nibbles(codes, fill)
    if plan.segments.coder[0, k] == Coder.RANS:
        table = plan.tables[int(plan.segments.table[0, k])]
        pairs, patches = patch_uncoded(pairs, patches, planes[0], table.freq > 0, fill)
    return [pairs, *(np.ascontiguousarray(p) for p in planes[1:])], patches


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
        uint8: the records one after another.
    n_units
        uint32 of shape (n_planes, n): 16-byte units of each rANS stream, else 0.
    n_patches
        uint32 of shape (n,).
    """
    records = [_record(plan, words, k) for k in range(plan.geometry.n_segments)]
    is_stream = plan.is_stream
    where = [(p, k) for k, r in enumerate(records) for p in range(len(r.planes)) if is_stream[p, k]]
    streams = rans.encode_streams(
        [_symbols(plan, records[k], p, k) for p, k in where],
        [contexts.tables_of(plan, p, k) for p, k in where],
        plan.tables,
        [
            contexts.classes_of(plan, p, k, records[k].scales, records[k].planes[0])
            for p, k in where
        ],
    )
    n_units = np.zeros(plan.segments.n_units.shape, np.uint32)
    for (p, k), stream in zip(where, streams, strict=True):
        records[k].stored[p], n_units[p, k] = stream, stream.size // rans.UNIT
    parts = [part for record in records for part in _written(record)]
    payload = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    return payload, n_units, np.array([r.patches.size for r in records], np.uint32)


def _record(plan: SegmentPlan, words: Words, k: int) -> Record:
    """Segment `k` in its parts, but for its streams."""
    none, segments = np.empty(0, np.uint8), plan.segments
    modes = _part(plan.modes, plan.modes_offsets, k)
    scales = _part(plan.scales, plan.scale_offsets, k)
    if segments.layout[k] == Layout.RAW:
        raw = np.ascontiguousarray(words[plan.geometry.rectangle(k)]).astype(plan.dtype.word_type)
        return Record(raw.reshape(-1).view(np.uint8), modes, scales, [], np.empty(0, "<u4"), [])
    planes, patches = segment_planes(plan, words, k)
    stored = [
        plane if coder == Coder.RAW else none
        for plane, coder in zip(planes, segments.coder[:, k].tolist(), strict=False)
    ]
    return Record(none, modes, scales, stored, patches.astype("<u4"), planes)


def _symbols(plan: SegmentPlan, record: Record, p: int, k: int) -> Bytes:
    """What is coded of a plane: its bytes, or what is left of them after prediction."""
    modes = plane_modes(plan, k, record.modes)[p]
    if modes.tolist() == [Mode.NONE]:
        return record.planes[p]
    return each_tile(plan, k, record.planes[p], modes, residuals)


def _written(record: Record) -> Iterator[Bytes]:
    """The parts of a record, each padded (R10.2)."""
    parts = (record.words, record.modes, record.scales, *record.stored)
    for part in (*parts, record.patches.view(np.uint8)):
        yield part
        yield np.zeros(-part.size % ALIGN, np.uint8)


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
