"""Thousands of corrupt segments for one call: some that `corruptions` has spoilt, drawn again and
again, crossed with each other and spoilt once more, by whole arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from corruptions import (
    MIN_UNITS,
    PATCHES,
    PLANES,
    Bytes,
    Rng,
    corrupted,
    draw_case,
    fitted,
    part_sizes,
    small_geometry,
)
from numpy.typing import NDArray

from wcodec.reference import decoding, rans
from wcodec.reference.records import check_plan
from wcodec.reference.segments import ALIGN, Coder, SegmentPlan, SegmentTable
from wcodec.reference.tiles import Geometry, Spans

ROUNDS: Final = 4  #: corruptions of the case that all segments are drawn from
MAX_SIDE: Final = 64  #: segments along a side of the matrix
MAX_WORDS: Final = 1 << 20  #: of the matrix, or a few more
#: neighbours that mostly come from one segment: backends take those of one kind together
ALIKE: Final = 4
CROSSED: Final = 0.1  #: share of the planes, and of the patches, that another segment gives
CHANGED: Final = 0.05  #: share of the streams with another table, and of those with another size
FLIPPED: Final = 0.3  #: share of the segments in which bits are flipped


@dataclass
class Bulk:
    """Segments to decode at once.

    Attributes
    ----------
    touched
        Which of them were not left alone.
    expected
        Words of the others; what else it holds means nothing.
    """

    plan: SegmentPlan
    payload: Bytes
    touched: NDArray[np.bool_]
    expected: NDArray[Any]


def spread(geometry: Geometry, values: NDArray[Any]) -> NDArray[Any]:
    """A value of each segment at each of its words, of shape (rows, cols)."""
    heights, widths = (sizes.reshape(geometry.grid) for sizes in geometry.sizes())
    return np.repeat(np.repeat(values.reshape(geometry.grid), heights[:, 0], 0), widths[0], 1)


@dataclass
class Pool:
    """Segments, spoilt or not, that many others are made of.

    Attributes
    ----------
    plan
        Of those that are not spoilt, which are the last.
    words
        Their words.
    segments, payload, sizes
        Columns, records, and the sizes of the parts of these.
    touched
        Which are spoilt.
    """

    plan: SegmentPlan
    words: NDArray[Any]
    segments: SegmentTable
    payload: Bytes
    sizes: NDArray[np.int64]
    touched: NDArray[np.bool_]


def draw_pool(rng: Rng, as_spans: bool) -> Pool:
    """Segments of a small grid, or of any widths in a single row."""
    geometry = Spans.of(rng.integers(1, 400, 64)) if as_spans else small_geometry(rng)
    case = draw_case(rng, True, geometry)
    good, words = case.decoding, np.empty_like(case.words)
    decoding.decode_segments(good, case.payload, words)
    some = [corrupted(rng, case) for _ in range(ROUNDS)]
    plans, payloads, touched = zip(
        *some, (good, case.payload, np.zeros(geometry.n_segments, bool)), strict=True
    )
    return Pool(
        good,
        words,
        SegmentTable.concatenate([plan.segments for plan in plans]),
        np.concatenate(payloads),
        np.hstack([part_sizes(plan) for plan in plans]),
        np.concatenate(touched),
    )


def draw_bulk(rng: Rng, pool: Pool) -> Bulk:
    """A grid or a row of corrupt segments, out of those of a pool."""
    good, small = pool.plan, pool.plan.geometry
    geometry, ids = _repeated(rng, small)
    rounds = rng.integers(0, ROUNDS + 1, -(-ids.size // ALIKE)).repeat(ALIKE)[: ids.size]
    drawn = ids + small.n_segments * rounds
    s, touched = pool.segments.take(drawn), pool.touched[drawn]
    came = _cross(rng, pool.segments, s, drawn, touched)
    _change(rng, SegmentPlan(good.dtype, geometry, s, good.tables), touched)

    plan = SegmentPlan(good.dtype, geometry, s, good.tables)
    check_plan(plan)
    payload = _gathered(rng, pool, came, part_sizes(plan))
    _flip(rng, plan, payload, touched)

    rows, cols = (
        spread(geometry, corner[ids] - own) + np.arange(side).reshape(shape)
        for corner, own, side, shape in zip(
            small.corners(), geometry.corners(), (geometry.rows, geometry.cols),
            ((-1, 1), (1, -1)), strict=True,
        )
    )  # fmt: skip
    return Bulk(plan, payload, touched, pool.words[rows, cols])


def _repeated(rng: Rng, small: Geometry) -> tuple[Geometry, NDArray[np.int64]]:
    """A larger geometry, and which segment of the small one has the size of each of its own."""
    if isinstance(small, Spans):
        ids = np.sort(rng.integers(0, small.n_segments, MAX_SIDE**2))
        return Spans.of(small.sizes()[1][ids]), ids
    words = small.segment_rows * small.segment_cols
    side = min(MAX_SIDE, max(8, math.isqrt(MAX_WORDS // words)))
    down, across = (
        np.append(np.sort(rng.integers(0, n - 1, side - 1)), n - 1)  # the last may be ragged
        for n in small.grid
    )
    rows, cols = (
        one * (side - 1) + all_ - one * (n - 1)
        for one, all_, n in zip(
            (small.segment_rows, small.segment_cols), (small.rows, small.cols), small.grid,
            strict=True,
        )
    )  # fmt: skip
    whole = Geometry(
        rows, cols, small.segment_rows, small.segment_cols, small.tile_rows, small.tile_cols
    )
    return whole, (down[:, None] * small.grid[1] + across).reshape(-1)


# ---- corruptions, in place: what is spoilt is `touched` ------------------------------------------
def _cross(
    rng: Rng, sources: SegmentTable, s: SegmentTable, drawn: NDArray[np.int64],
    touched: NDArray[np.bool_],
) -> NDArray[np.int64]:  # fmt: skip
    """Planes and patches of other segments, in some of the segments that were drawn.

    Returns
    -------
    int64 of shape (number of parts, n): the source that each part is taken from.
    """
    n_planes, n = s.coder.shape
    came = np.tile(drawn, (4 + n_planes, 1))
    for part in (*range(PLANES, PLANES + n_planes), PATCHES):
        others = rng.integers(0, sources.layout.size, n)
        at = np.flatnonzero((rng.random(n) < CROSSED) & (sources.layout[others] == s.layout))
        came[part, at] = other = others[at]
        touched[at] = True
        if part == PATCHES:
            s.n_patches[at], s.base[at] = sources.n_patches[other], sources.base[other]
        else:
            for name in ("coder", "table", "prediction", "n_units"):
                getattr(s, name)[part - PLANES, at] = getattr(sources, name)[part - PLANES, other]
    return came


def _change(rng: Rng, plan: SegmentPlan, touched: NDArray[np.bool_]) -> None:
    """Other tables and sizes; sizes are then such as the segments can have."""
    s, streams = plan.segments, plan.is_stream
    other = (s.coder == Coder.RANS) & (rng.random(streams.shape) < CHANGED)
    s.table[other] = rng.integers(0, len(plan.tables), int(other.sum()))
    units = s.n_units.astype(np.int64)
    other_size = streams & (rng.random(streams.shape) < CHANGED)
    units[other_size] += rng.integers(-2, 3, int(other_size.sum()))
    most = rans.max_stream_nbytes(plan.plane_nbytes) // rans.UNIT
    s.n_units[...] = np.where(streams, np.clip(units, MIN_UNITS, np.maximum(most, MIN_UNITS)), 0)
    s.n_patches[...] = np.minimum(s.n_patches, plan.n_elements)
    touched |= (other | other_size).any(axis=0)


def _gathered(rng: Rng, pool: Pool, came: NDArray[np.int64], wanted: NDArray[np.int64]) -> Bytes:
    """A payload whose parts come from those of some sources, each cut or extended to the size that
    is wanted. All sizes are multiples of 16.
    """
    part = np.arange(len(wanted))[:, None]
    sources, targets = (_starts(sizes // ALIGN) for sizes in (pool.sizes, wanted))
    n = np.minimum(pool.sizes[part, came], wanted).reshape(-1) // ALIGN
    step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    out = fitted(rng, pool.payload[:0], int(wanted.sum()))
    out.reshape(-1, ALIGN)[np.repeat(targets.reshape(-1), n) + step] = pool.payload.reshape(
        -1, ALIGN
    )[np.repeat(sources[part, came].reshape(-1), n) + step]
    return out


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where parts start, which lie record by record; of shape (number of parts, n)."""
    before = np.cumsum(sizes.T).reshape(sizes.T.shape).T - sizes
    return np.asarray(before, np.int64)


def _flip(rng: Rng, plan: SegmentPlan, payload: Bytes, touched: NDArray[np.bool_]) -> None:
    """Bits anywhere in some records, and near the start of their planes."""
    sizes = np.diff(plan.offsets)
    k = np.flatnonzero((rng.random(sizes.size) < FLIPPED) & (sizes > 0))
    plane = rng.integers(0, plan.dtype.n_planes, k.size)
    anywhere = plan.offsets[k] + (rng.random(k.size) * sizes[k]).astype(np.int64)
    near = plan.plane_offsets[plane, k] + rng.integers(0, 72, k.size)
    for at in (anywhere, np.minimum(near, plan.offsets[k + 1] - 1)):
        payload[at] ^= np.left_shift(1, rng.integers(0, 8, k.size)).astype(np.uint8)
    touched[k] = True
