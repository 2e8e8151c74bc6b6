"""Which difference from another checkpoint to take. Spec: chapter 14 (informative), R12.5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from wcodec.planner import costs
from wcodec.planner.costs import Histograms
from wcodec.reference.differences import BaseTensor, Difference, coded_dtype
from wcodec.reference.planes import DType, Words
from wcodec.reference.tiles import Geometry

SAMPLED: Final = 16  #: rectangles of a tensor that the choice of a difference looks at
SAMPLED_WORDS: Final = 1 << 14  #: of each
SAMPLED_COLS: Final = 256
#: segments of differences are up to that many times larger, near so many words: they hold few
#: bytes, of which streams must not be most
LARGER: Final = 4
LARGE_WORDS: Final = 1 << 17
#: a difference must save that part of what the tensor costs without: it needs a base
LEAST_SAVING: Final = 50


class Subtracting(Histograms, Protocol):
    """The kernels that the choice of a difference needs; see `wcodec.backends.protocol.Backend`."""

    def to_device(self, array: Words) -> Any: ...

    def subtract_base(self, words: Any, base: Any, difference: Difference) -> Any: ...


def enlarged(geometry: Geometry) -> Geometry:
    """Segments for differences, each of one tile;
    with as many columns, if the matrix has more rows than a segment.
    """
    g = geometry
    times = max(1, min(LARGER, round(LARGE_WORDS / (g.segment_rows * g.segment_cols))))
    if g.rows > g.segment_rows:
        rows, cols = min(g.rows, times * g.segment_rows), g.segment_cols
    else:
        rows, cols = g.segment_rows, min(g.cols, times * g.segment_cols)
    return replace(g, segment_rows=rows, segment_cols=cols, tile_rows=rows, tile_cols=cols)


def _rectangles(rows: int, cols: int) -> Iterator[tuple[slice, slice]]:
    """Some of a matrix, spread evenly; all of it, if it is small."""
    if rows * cols <= SAMPLED * SAMPLED_WORDS:
        yield slice(0, rows), slice(0, cols)
        return
    width = min(cols, max(SAMPLED_COLS, SAMPLED_WORDS // rows))
    height = min(rows, SAMPLED_WORDS // width)
    n_down, n_across = rows // height, cols // width
    for i in range(SAMPLED):
        k = i * (n_down * n_across) // SAMPLED
        r, c = k // n_across * height, (k + i) % n_across * width  # not always in the same columns
        yield slice(r, r + height), slice(c, c + width)


def _cost(counts: NDArray[np.int64], prob_bits: int) -> float:
    """What byte planes with these histograms cost under tables of their own, in 1/65536 bit;
    no more than their bytes.
    """
    coded = [
        costs.symbol_costs(costs.quantise(c, prob_bits)) @ c if np.count_nonzero(c) > 1 else 0
        for c in counts
    ]
    return sum(
        min(float(cost), float(c.sum()) * (8 << 16)) for cost, c in zip(coded, counts, strict=True)
    )


def choose_difference(
    matrix: Words, base: BaseTensor, dtype: DType, prob_bits: int, backend: Subtracting
) -> Difference:
    """The difference that makes a part of a tensor smallest; none, if none saves 2 %."""
    if matrix.size == 0:
        return Difference.NONE
    counts = {d: np.zeros((dtype.word_nbytes, 256), np.int64) for d in Difference}
    for rows, cols in _rectangles(*matrix.shape):
        part = np.require(matrix[rows, cols], dtype.word_type, ["C", "A"])
        words, other = (
            backend.to_device(a)
            for a in (part, base.words(rows, cols, np.empty(part.shape, part.dtype)))
        )
        segment = Geometry(*part.shape, *part.shape, *part.shape)
        for d in Difference:
            coded = words if d == Difference.NONE else backend.subtract_base(words, other, d)
            counts[d] += backend.histogram(coded, segment, coded_dtype(dtype, d))[0]
    costs = {d: _cost(c, prob_bits) for d, c in counts.items()}
    best = min(Difference.XOR, Difference.MINUS, key=lambda d: costs[d])
    return (
        best
        if costs[best] * LEAST_SAVING < costs[Difference.NONE] * (LEAST_SAVING - 1)
        else Difference.NONE
    )
