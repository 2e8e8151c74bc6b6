"""Segment records, decoded. Spec: chapter 10.

`read_record` cuts a record into its parts, in the order in which they lie. `decode_segments` turns
the parts into words: streams into planes, planes into words, words into the segment's place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import contexts, rans
from wcodec.reference.planes import Bytes, Layout, Words, merge, unpack_nibbles
from wcodec.reference.prediction import IS_MODE, Mode, restore
from wcodec.reference.segments import (
    ALIGN,
    Coder,
    Record,
    SegmentPlan,
    Status,
    each_tile,
    plane_modes,
)
from wcodec.reference.tiles import element_order


def read_record(plan: SegmentPlan, payload: Bytes, k: int) -> Record:
    """Cut record `k` into its parts. Planes of coder RAW or CONSTANT are known then."""
    at = int(plan.offsets[k])

    def take(nbytes: int) -> Bytes:
        nonlocal at
        part = payload[at : at + nbytes]
        at += nbytes + -nbytes % ALIGN  # each part is padded (R10.2)
        return part

    segments, n = plan.segments, int(plan.n_elements[k])
    words = take(n * plan.dtype.word_nbytes if plan.is_raw[k] else 0)
    modes = take(int(plan.modes_nbytes[k]))
    scales = take(int(plan.scale_nbytes[k]))
    stored, planes = list[Bytes](), list[Bytes]()
    for p, coder in enumerate(segments.coder[:, k].tolist()):
        size = int(plan.plane_nbytes[p, k])
        if coder == Coder.RAW:
            stored.append(take(size))
            planes.append(stored[-1])
        elif coder == Coder.CONSTANT:
            stored.append(take(0))
            planes.append(np.full(size, segments.table[p, k], np.uint8))
        else:
            stored.append(take(int(segments.n_units[p, k]) * rans.UNIT))
            planes.append(np.empty(0, np.uint8))
    patches = take(4 * int(segments.n_patches[k])).view("<u4")
    return Record(words, modes, scales, stored, patches, planes)


def decode_segments(plan: SegmentPlan, payload: Bytes, out: Words) -> NDArray[np.uint8]:
    """Decode all segments of a plan into `out`, of shape ``(geometry.rows, geometry.cols)``.

    Returns
    -------
    uint8 of shape (n,): a `Status` a segment. What `out` holds of a segment that is not
    `Status.OK` is unspecified.
    """
    records = [read_record(plan, payload, k) for k in range(plan.geometry.n_segments)]
    coder = plan.segments.coder
    context = coder == Coder.CONTEXT
    # RANS planes need no contexts, nor does plane 0, which may hold the contexts of the others
    first = (coder == Coder.RANS) | (context & (np.arange(len(coder)) == 0)[:, None])
    _decode_streams(plan, records, first)
    for record in records:
        if record.status == Status.OK and not IS_MODE[record.modes].all():
            record.status = Status.BAD_TILE_MODE
    _decode_streams(plan, records, context & ~first)
    for k, record in enumerate(records):
        if record.status == Status.OK:
            record.status = _decode_words(plan, record, k, out[plan.geometry.rectangle(k)])
    return np.array([record.status for record in records], np.uint8)


def _decode_streams(plan: SegmentPlan, records: list[Record], chosen: NDArray[np.bool_]) -> None:
    """Decode the streams of the chosen planes, of shape (n_planes, n), and undo prediction."""
    where = [(p, k) for p, k in np.argwhere(chosen).tolist() if records[k].status == Status.OK]
    symbols, ends_well = rans.decode_streams(
        [records[k].stored[p] for p, k in where],
        np.array([plan.plane_nbytes[p, k] for p, k in where], np.int64),
        [contexts.tables_of(plan, p, k) for p, k in where],
        plan.tables,
        [
            contexts.classes_of(plan, p, k, records[k].scales, records[k].planes[0])
            for p, k in where
        ],
    )
    for (p, k), plane, good in zip(where, symbols, ends_well.tolist(), strict=True):
        record = records[k]
        if not good:
            record.status = Status.BAD_STREAM
            continue
        modes = plane_modes(plan, k, record.modes)[p]
        # a byte that is no mode is found by `decode_segments`, when all these streams are decoded
        if modes.tolist() != [Mode.NONE] and IS_MODE[modes].all():
            plane = each_tile(plan, k, plane, modes, restore)
        record.planes[p] = plane


def _decode_words(plan: SegmentPlan, record: Record, k: int, out: Words) -> Status:
    """The words of a segment from its planes, written to their place."""
    dtype, segments = plan.dtype, plan.segments
    if segments.layout[k] == Layout.RAW:
        out[...] = record.words.view(dtype.word_type).reshape(out.shape)
        return Status.OK
    planes = record.planes[: dtype.word_nbytes]
    if segments.layout[k] == Layout.PAIRS:
        # the value in the highest byte, the index in the others (R10.8)
        index = (record.patches & np.uint32(0xFFFFFF)).astype(np.int64)
        if (index >= out.size).any() or (np.diff(index) <= 0).any():
            return Status.BAD_PATCH
        codes = unpack_nibbles(record.planes[0], out.size)
        if dtype.word_nbytes == 1:
            planes = [codes << np.uint8(4) | unpack_nibbles(record.planes[1], out.size)]
        else:
            planes[0] = codes + segments.base[k]
            planes[0][index] = record.patches >> np.uint32(24)
    raster = np.empty(out.size, dtype.word_type)
    order = element_order(*out.shape, plan.geometry.tile_rows, plan.geometry.tile_cols)
    raster[order] = merge(np.stack(planes), dtype)
    out[...] = raster.reshape(out.shape)
    return Status.OK
