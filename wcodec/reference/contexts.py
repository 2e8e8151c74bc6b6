"""Which table codes a symbol, by its context. Spec: 9.4, R10.10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.planes import (
    Bytes,
    Layout,
    unpack_nibbles,
)
from wcodec.reference.segments import Coder, SegmentPlan
from wcodec.reference.tables import ContextKind, ContextMap
from wcodec.reference.tiles import element_order


def tables_of(plan: SegmentPlan, p: int, k: int) -> tuple[int, ...]:
    """Numbers of the tables of a coded plane: one, or one for each class."""
    number = int(plan.segments.table[p, k])
    return (
        plan.tables.maps[number].tables if plan.segments.coder[p, k] == Coder.CONTEXT else (number,)
    )


def unpack_scales(packed: Bytes, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Classes of the rows and of the columns of a segment (R10.10):
    two bits each, four to a byte, the lowest first.
    """
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
    plan: SegmentPlan, context_map: ContextMap, p: int, k: int, scales: Bytes, plane_0: Bytes
) -> Bytes:
    """Context of each symbol of plane `p` of segment `k` (R9.13); `scales` is that part of its
    record, `plane_0` its first plane.
    """
    if context_map.kind == ContextKind.PLANE:
        if plan.segments.layout[k] == Layout.PAIRS and plan.dtype.word_nbytes > 1:
            return unpack_nibbles(plane_0, int(plan.n_elements[k]))
        return plane_0
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


def classes_of(plan: SegmentPlan, p: int, k: int, scales: Bytes, plane_0: Bytes) -> Bytes | None:
    """Class of each symbol of a plane; ``None`` if it has a single table."""
    if plan.segments.coder[p, k] != Coder.CONTEXT:
        return None
    context_map = plan.tables.maps[int(plan.segments.table[p, k])]
    return np.frombuffer(context_map.class_of, np.uint8)[
        contexts_of(plan, context_map, p, k, scales, plane_0)
    ]


def joint_histogram(
    symbols: Bytes,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    bins: Bytes,
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Counts of symbols by line; see `wcodec.backends.protocol.Backend.joint_histogram`."""
    n_lines, n_bins = shape
    which = (rows[:, None] + cols) * n_bins + bins[symbols]
    counts = np.bincount(which.reshape(-1), minlength=n_lines * n_bins)
    return np.asarray(counts.reshape(shape), np.int64)
