"""Which difference from another checkpoint to take. Spec: chapter 14 (informative), R12.5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np

from wcodec.planner.costs import BYTE, Counts, Histograms, ideal_cost
from wcodec.reference.differences import (
    UNSIGNED,
    BaseTensor,
    Difference,
    coded_dtype,
    subtract,
)
from wcodec.reference.planes import DType, Words, split
from wcodec.reference.tiles import Geometry

SAMPLED: Final = 16  #: rectangles of a tensor that the choice of a difference looks at
SAMPLED_WORDS: Final = 1 << 14  #: of each
LIST_SAMPLED_WORDS: Final = 1 << 11  #: of each, for the question whether few words have changed
SAMPLED_COLS: Final = 256
#: segments of differences are up to that many times larger, near so many words: they hold few
#: bytes, of which streams must not be most
LARGER: Final = 4
LARGE_WORDS: Final = 1 << 17
MOST: Final = 2  #: words are listed if at most one in so many has changed
FEW: Final = 4  #: or one in so many, unless that is smaller by far
OBVIOUS: Final = 16  #: lists that are that much smaller than the tensor without a base are taken
#: words of a segment of such a tensor: of what few bytes it holds, streams must not be most
LIST_WORDS: Final = 1 << 20
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


def _rectangles(rows: int, cols: int, n_words: int) -> Iterator[tuple[slice, slice]]:
    """Some of a matrix, spread evenly; all of it, if it is small."""
    if rows * cols <= SAMPLED * n_words:
        yield slice(0, rows), slice(0, cols)
        return
    width = min(cols, max(SAMPLED_COLS, n_words // rows))
    height = min(rows, n_words // width)
    n_down, n_across = rows // height, cols // width
    for i in range(SAMPLED):
        k = i * (n_down * n_across) // SAMPLED
        r, c = k // n_across * height, (k + i) % n_across * width  # not always in the same columns
        yield slice(r, r + height), slice(c, c + width)


def _sample(matrix: Words, base: BaseTensor, dtype: DType, n_words: int) -> tuple[Words, Words]:
    """Some words, flat, and those of the base in their places: of `SAMPLED` rectangles of `n_words`
    each.
    """
    parts, others = list[Words](), list[Words]()
    for rows, cols in _rectangles(matrix.shape[0], matrix.shape[1], n_words):
        part = np.require(matrix[rows, cols], dtype.word_type, ["C", "A"])
        other = base.words(rows, cols, np.empty(part.shape, part.dtype))
        parts.append(part.reshape(-1))
        others.append(other.reshape(-1))
    return np.concatenate(parts), np.concatenate(others)


def _counted(words: Any, dtype: DType, backend: Subtracting) -> Counts:
    """Histograms of the byte planes of words on the device, at least one."""
    n = int(words.size)
    all_words = backend.histogram(words.reshape(1, n), Geometry(1, n, 1, n, 1, n), dtype)
    counts: Counts = all_words[0]
    return counts


def _cost(counts: Counts) -> int:
    """What byte planes with these histograms cost, each by its entropy, in 1/65536 bit."""
    return int(ideal_cost(counts).sum())


def choose_difference(
    matrix: Words, base: BaseTensor, dtype: DType, backend: Subtracting
) -> Difference:
    """The difference that makes a part of a tensor smallest; none, if none saves 2 %."""
    if matrix.size == 0:
        return Difference.NONE
    words, other = map(backend.to_device, _sample(matrix, base, dtype, SAMPLED_WORDS))
    costs = {Difference.NONE: _cost(_counted(words, dtype, backend))}
    for d in (Difference.XOR, Difference.MINUS):
        z = backend.subtract_base(words, other, d)
        costs[d] = _cost(_counted(z, coded_dtype(dtype, d), backend))
    best = min(Difference.XOR, Difference.MINUS, key=lambda d: costs[d])
    if costs[best] * LEAST_SAVING >= costs[Difference.NONE] * (LEAST_SAVING - 1):
        return Difference.NONE
    return best


# ---- lists ---------------------------------------------------------------------------------------
def few_changed(matrix: Words, base: BaseTensor, dtype: DType) -> Words | None:
    """Some words of a tensor, if few of them differ from the base's."""
    words, other = _sample(matrix, base, dtype, LIST_SAMPLED_WORDS)
    return words if int(np.count_nonzero(words != other)) * MOST <= words.size else None


def kind_of_lists(words: Words, base: Words) -> Difference:
    """The difference for listed words, by some of them: `MINUS`, unless `XOR` saves 2 %. (What
    tensors have in common is coded, and applied, at once.)
    """
    step = max(1, words.size // SAMPLED_WORDS)
    some, other = words[::step], base[::step]

    def cost(d: Difference) -> int:
        planes = subtract(some, other, d).view(np.uint8).reshape(-1, words.itemsize)
        counts = np.stack([np.bincount(p, minlength=256) for p in planes.T])
        return _cost(counts)

    if words.size == 0:
        return Difference.MINUS
    pays = cost(Difference.XOR) * LEAST_SAVING < cost(Difference.MINUS) * (LEAST_SAVING - 1)
    return Difference.XOR if pays else Difference.MINUS


def lists_pay(listed: Listed, sample: Words, dtype: DType, backend: Subtracting) -> bool:
    """Whether to list what has changed of a tensor: it is smaller than the tensor without a base,
    and not larger than the differences of all words; where more than one word in four has changed,
    smaller by a tenth, for all differences are then decoded sooner. `sample` are some of its words.
    """
    n, m = listed.n_words, listed.words.size
    plain = _cost(_counted(backend.to_device(sample), dtype, backend)) * n // sample.size
    if m == 0 or (listed.gaps.nbytes + listed.words.nbytes) * BYTE * OBVIOUS < plain:
        return plain > 0
    kind = kind_of_lists(listed.words, listed.base)
    coded = coded_dtype(dtype, kind)
    new, old = map(backend.to_device, (listed.words, listed.base))
    of_words = _counted(backend.subtract_base(new, old, kind), coded, backend)
    of_gaps = _counted(backend.to_device(listed.gaps), UNSIGNED[1], backend)
    cost = _cost(of_gaps) + _cost(of_words)
    same = split(np.zeros(1, dtype.word_type), coded)[:, 0]  # what is coded of all other words
    of_words[np.arange(same.size), same] += n - m
    dense = _cost(of_words)
    few = m * FEW <= n
    return cost * LEAST_SAVING < plain * (LEAST_SAVING - 1) and (
        cost * 49 <= dense * 50 if few else cost * 10 <= dense * 9
    )


class Listed(Protocol):
    """Words that differ from a base's, on the host; see `wcodec.codec.listing.Listed`."""

    @property
    def gaps(self) -> Words: ...

    @property
    def words(self) -> Words: ...

    @property
    def base(self) -> Words: ...

    @property
    def n_words(self) -> int: ...


def list_segments(n: int) -> Geometry:
    """How a tensor of `n` words is cut that lists what has changed."""
    size = max(1, min(n, LIST_WORDS))
    return Geometry(1, n, 1, size, 1, size)
