"""Segment records, encoded. Spec: chapter 10."""

from __future__ import annotations

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
    split,
    split_window,
)
from wcodec.reference.prediction import Mode, residuals
from wcodec.reference.segments import (
    ALIGN,
    Coder,
    SegmentPlan,
    SegmentTable,
    each_tile,
    plane_modes,
)
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry, element_order


# ---- encoding ------------------------------------------------------------------------------------
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
    symbols = list[Bytes]()
    tables = list[tuple[int, ...]]()
    classes = list[Bytes | None]()
    where = list[tuple[int, int]]()
    for k in range(n):
        modes = _part(plan.modes, plan.modes_offsets, k)
        scales = _part(plan.scales, plan.scale_offsets, k)
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
                tables.append(contexts.tables_of(plan, p, k))
                classes.append(contexts.classes_of(plan, p, k, scales, planes[0]))
                where.append((k, p))
    n_units = np.zeros(segments.n_units.shape, np.uint32)
    for (k, p), stream in zip(
        where, rans.encode_streams(symbols, tables, plan.tables, classes), strict=True
    ):
        streams[k, p], n_units[p, k] = stream, stream.size // rans.UNIT
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
