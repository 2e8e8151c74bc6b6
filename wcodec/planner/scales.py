"""Classes of rows and columns by the size of their words, and contexts of places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    BIT,
    Costs,
    Counts,
    log2_of,
)
from wcodec.reference.contexts import joint_histogram, pack_scales
from wcodec.reference.planes import Bytes, DType, WordMap
from wcodec.reference.tiles import Geometry

SIDES: Final = 4  #: classes of rows, and of columns

#: a count of so many parts, to which one is added, while clusters are looked for
SMOOTH: Final = 32

#: of more symbols, four neighbours are counted as one while classes are looked for
MANY: Final = 64

#: while classes of rows are looked for at first, so many columns for each bin are enough
ENOUGH: Final = 32

#: lines into which all symbols are counted
LANES: Final = 16

#: what a symbol costs that a table cannot code, while classes are looked for
DEAR: Final = 64 * BIT

_SAME: Final = np.arange(256, dtype=np.uint8)


def _prices(counts: Counts) -> Costs:
    """Cost of each symbol (last axis) given counts, all above 0."""
    smooth = counts * SMOOTH + 1
    return (log2_of(smooth.sum(axis=-1, keepdims=True)) - log2_of(smooth)).astype(np.float64)


def _by_rank(weight: Counts) -> Counts:
    """Classes of equal size, by ascending weight."""
    rank = np.empty(weight.size, np.int64)
    rank[np.argsort(weight, kind="stable")] = np.arange(weight.size)
    return rank * SIDES // weight.size


class Scales:
    """Classes of the rows and the columns of a segment's plane.

    Parameters
    ----------
    symbols
        uint8 of shape (height, width).
    weight
        Of each of 256 symbols: classes ascend by its mean.
    count
        As `wcodec.reference.contexts.joint_histogram`.
    """

    def __init__(
        self, symbols: Bytes, weight: Counts, count: Callable[..., Counts] = joint_histogram
    ) -> None:
        self.symbols, self._count = symbols, count
        none = np.zeros(max(symbols.shape), np.int64)
        height, width = symbols.shape
        apart = np.arange(width) % LANES  # neighbours are counted apart: a count takes time
        lanes = count(symbols, none[:height], apart, _SAME, (LANES, 256))
        self.counts = lanes.sum(axis=0)
        self._found = np.flatnonzero(self.counts)
        bins = self._found >> (2 if self._found.size > MANY else 0)
        found, number = np.unique(bins, return_inverse=True)
        self._bin_of, self._n = np.zeros(256, np.uint8), found.size
        self._bin_of[self._found] = number.reshape(-1)
        self.cols, step = none[:width], max(1, width // (ENOUGH * self._n))
        self.rows = _by_rank(self._by_row(step).sum(axis=1) @ self._mean(weight))
        by_col = self._by_col()
        cols = _by_rank(by_col.sum(axis=1) @ self._mean(weight))
        self.cols = self._clusters(by_col, cols, 3)
        self.rows = self._clusters(self._by_row(step), self.rows, 4)
        by_col = self._by_col()
        self._take_cols(self._clusters(by_col, self.cols, 2), by_col)

    def _mean(self, of_symbols: NDArray[Any]) -> Counts:
        """Of each bin, the mean over its symbols (last axis)."""
        of_bin = (self._bin_of[:, None] == np.arange(self._n)).astype(np.float64)
        return np.asarray((of_symbols * self.counts) @ of_bin // (self.counts @ of_bin), np.int64)

    def _by_row(self, step: int = 1) -> Counts:
        """Counts of bins by row and class of columns, in every so many-th column."""
        symbols, height = self.symbols[:, ::step], len(self.symbols)
        rows, shape = np.arange(height) * SIDES, (height * SIDES, self._n)
        counts = self._count(symbols, rows, self.cols[::step], self._bin_of, shape)
        return counts.reshape(height, SIDES, self._n)

    def _by_col(self) -> Counts:
        """Counts of bins by column and class of rows."""
        width = self.symbols.shape[1]
        lines = self.rows, np.arange(width) * SIDES, self._bin_of, (width * SIDES, self._n)
        return self._count(self.symbols, *lines).reshape(width, SIDES, self._n)

    def _take_cols(self, cols: Counts, by_col: Counts) -> None:
        """Set the classes of columns, given what they have been found from."""
        self.cols = cols
        if self._n < self._found.size:
            lines = self.rows * SIDES, cols, _SAME, (SIDES * SIDES, 256)
            self._joint = self._count(self.symbols, *lines)
            return
        own = (np.arange(SIDES)[:, None] == cols).astype(np.float64)
        sums = (own @ by_col.reshape(len(by_col), -1)).reshape(SIDES, SIDES, self._n)
        self._joint = np.zeros((SIDES * SIDES, 256), np.int64)
        self._joint[:, self._found] = sums.swapaxes(0, 1).reshape(SIDES * SIDES, self._n)

    def _clusters(self, counts: Counts, classes: Counts, rounds: int) -> Counts:
        """Classes of lines given their counts: each goes where it is shortest, repeatedly."""
        flat = counts.reshape(len(counts), -1).astype(np.float64)
        for _ in range(rounds):
            sums = (np.arange(SIDES)[:, None] == classes).astype(np.float64) @ flat
            prices = _prices(sums.astype(np.int64).reshape(SIDES, SIDES, -1))
            classes = np.argmin(flat @ prices.reshape(SIDES, -1).T, axis=1)
        return classes

    def fit(self, cost: Costs) -> None:
        """Assign rows, then columns, to the classes of tables whose costs are given: (16, 256)."""
        prices = self._mean(np.minimum(cost, DEAR)).reshape(SIDES, SIDES, self._n)
        by_class = prices.astype(np.float64)
        by_row = self._by_row().reshape(len(self.rows), -1)
        self.rows = np.argmin(by_row @ by_class.reshape(SIDES, -1).T, axis=1)
        by_col = self._by_col()
        flat = by_col.reshape(len(by_col), -1)
        cols = np.argmin(flat @ by_class.swapaxes(0, 1).reshape(SIDES, -1).T, axis=1)
        self._take_cols(cols, by_col)

    def joint(self) -> Counts:
        """Counts of the symbols by both classes: (16, 256)."""
        return self._joint

    def kept(self) -> tuple[Counts, Counts, Counts]:
        """The classes as they are now, for `restore`."""
        return self.rows, self.cols, self._joint

    def restore(self, kept: tuple[Counts, Counts, Counts]) -> None:
        """Undo what came after `kept`."""
        self.rows, self.cols, self._joint = kept

    def packed(self) -> Bytes:
        """As the record holds them."""
        return pack_scales(self.rows.astype(np.uint8), self.cols.astype(np.uint8))


def weights(dtype: DType) -> Counts:
    """What grows with the magnitude of a word, by its top byte."""
    s = np.arange(256)
    if dtype.word_map is WordMap.OFFSET:
        return np.abs(2 * s - 255)
    return s & 127 if dtype.numpy.kind == "f" and dtype.word_map is WordMap.IDENTITY else s


def positions(segment: Bytes, g: Geometry) -> Bytes:
    """Place of each word of a segment in the 8x8 blocks of its tile (R9.13), in raster order."""
    rows, cols = (
        np.arange(n) % t % 8 for n, t in zip(segment.shape, (g.tile_rows, g.tile_cols), strict=True)
    )
    return np.asarray(rows[:, None] * 8 + cols, np.uint8)


def joint_counts(contexts: Bytes, symbols: Bytes, n_contexts: int) -> Counts:
    """Counts of symbols by context."""
    key = contexts.astype(np.uint16) << np.uint16(8) | symbols
    return np.bincount(key.reshape(-1), minlength=n_contexts * 256).reshape(n_contexts, 256)
