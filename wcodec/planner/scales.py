"""Classes of rows and columns by the size of their words, and contexts of places."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.planner.costs import (
    BIT,
    Costs,
    Counts,
    log2_of,
)
from wcodec.reference.contexts import pack_scales
from wcodec.reference.planes import Bytes, DType, WordMap
from wcodec.reference.tiles import Geometry

SIDES: Final = 4  #: classes of rows, and of columns

#: a count of so many parts, to which one is added, while clusters are looked for
SMOOTH: Final = 32

#: of more symbols, four neighbours are counted as one while classes are looked for
MANY: Final = 64

#: what a symbol costs that a table cannot code, while classes are looked for
DEAR: Final = 64 * BIT


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
    """

    def __init__(self, symbols: Bytes, weight: Counts) -> None:
        self.symbols, self.counts = symbols, np.bincount(symbols.reshape(-1), minlength=256)
        bins = np.flatnonzero(self.counts) >> (2 if (self.counts > 0).sum() > MANY else 0)
        found, number = np.unique(bins, return_inverse=True)
        self.bin_of, self.n = np.zeros(256, np.int64), found.size
        self.bin_of[self.counts > 0] = number.reshape(-1)
        self.bins = self.bin_of[symbols]
        self.rows = _by_rank(weight[symbols].sum(axis=1))
        by_col = self._by_col()
        self.cols = self._clusters(by_col, _by_rank(by_col.sum(axis=1) @ self._mean(weight)), 3)
        self.rows = self._clusters(self._by_row(), self.rows, 4)
        self.cols = self._clusters(self._by_col(), self.cols, 2)

    def _mean(self, of_symbols: NDArray[Any]) -> Counts:
        """Of each bin, the mean over its symbols (last axis)."""
        of_bin = (self.bin_of[:, None] == np.arange(self.n)).astype(np.float64)
        return np.asarray((of_symbols * self.counts) @ of_bin // (self.counts @ of_bin), np.int64)

    def _by_row(self) -> Counts:
        """Counts of bins by row and class of columns."""
        return self._lines(np.arange(len(self.rows))[:, None] * SIDES + self.cols, len(self.rows))

    def _by_col(self) -> Counts:
        """Counts of bins by column and class of rows."""
        width = self.symbols.shape[1]
        return self._lines(np.arange(width) * SIDES + self.rows[:, None], width)

    def _lines(self, line: Counts, n_lines: int) -> Counts:
        bins = (line * self.n + self.bins).reshape(-1)
        counts = np.bincount(bins, minlength=n_lines * SIDES * self.n)
        return counts.reshape(n_lines, SIDES, self.n)

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
        prices = self._mean(np.minimum(cost, DEAR)).reshape(SIDES, SIDES, self.n).astype(np.float64)
        by_row = self._by_row().reshape(len(self.rows), -1)
        self.rows = np.argmin(by_row @ prices.reshape(SIDES, -1).T, axis=1)
        by_col = self._by_col().reshape(len(self.cols), -1)
        self.cols = np.argmin(by_col @ prices.swapaxes(0, 1).reshape(SIDES, -1).T, axis=1)

    def joint(self) -> Counts:
        """Counts of the symbols by both classes: (16, 256)."""
        classes = (self.rows[:, None] * SIDES + self.cols).astype(np.uint8)
        return joint_counts(classes, self.symbols, SIDES * SIDES)

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
