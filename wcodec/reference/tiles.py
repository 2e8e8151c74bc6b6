"""Matrix view, segments, tiles, and the order of elements. Spec: chapter 6."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_SEGMENT_ELEMENTS: Final = 1 << 24  #: R6.5
MIN_TILE: Final = 16  #: R6.7
MAX_RANK: Final = 32  #: R6.1
CHUNK_NBYTES: Final = 1 << 24  #: words planned and encoded at once


def matrix_view(
    shape: tuple[int, ...], row_rank: int, words_per_element: int = 1
) -> tuple[int, int]:
    """Rows and columns of a tensor's matrix of words (R6.2).

    The first `row_rank` dimensions make the rows, the others the columns;
    a complex element is two columns.
    """
    return math.prod(shape[:row_rank]), math.prod(shape[row_rank:]) * words_per_element


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a matrix of words is cut into segments, and segments into tiles. All in words."""

    rows: int
    cols: int
    segment_rows: int
    segment_cols: int
    tile_rows: int
    tile_cols: int

    @property
    def grid(self) -> tuple[int, int]:
        """Segment rows and segment columns of the matrix; (0, 0) if it is empty."""
        if self.rows == 0 or self.cols == 0:
            return 0, 0
        return -(-self.rows // self.segment_rows), -(-self.cols // self.segment_cols)

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return math.prod(self.grid)

    @property
    def one_tile(self) -> bool:
        """Whether every segment is a single tile, so that elements run in raster order."""
        return self.tile_rows == self.segment_rows and self.tile_cols == self.segment_cols

    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of all segments, ragged edges clipped (R6.6). Two int64 arrays of
        length `n_segments`, not to be changed.
        """
        return self._sizes()[:2]

    def n_elements(self) -> NDArray[np.int64]:
        """Words of each segment. An int64 array of length `n_segments`, not to be changed."""
        return self._sizes()[2]

    def _sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        return _sizes(self) if self.n_segments <= _KEPT_SEGMENTS else _sizes.__wrapped__(self)

    def tile_counts(self) -> NDArray[np.int64]:
        """Tiles of each segment."""
        heights, widths = self.sizes()
        return -(-heights // self.tile_rows) * -(-widths // self.tile_cols)

    def corners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the first word of each segment.
        Two int64 arrays of length `n_segments`.
        """
        n_down, n_across = self.grid
        rows = np.arange(n_down, dtype=np.int64) * self.segment_rows
        cols = np.arange(n_across, dtype=np.int64) * self.segment_cols
        return np.repeat(rows, n_across), np.tile(cols, n_down)

    def rectangle(self, k: int) -> tuple[slice, slice]:
        """Rows and columns of segment `k`; segments are numbered in raster order (R6.4)."""
        i, j = divmod(k, self.grid[1])
        r, c = i * self.segment_rows, j * self.segment_cols
        return slice(r, min(r + self.segment_rows, self.rows)), slice(
            c, min(c + self.segment_cols, self.cols)
        )

    def select(
        self, down: NDArray[np.int64], across: NDArray[np.int64]
    ) -> tuple[Geometry, NDArray[np.int64]]:
        """The sub-grid of some segment rows and segment columns, itself a geometry,
        and the ids of its segments.

        Both index arrays ascend. Only a last segment row or column can be ragged,
        so the result is regular.
        """
        heights = np.minimum(self.segment_rows, self.rows - down * self.segment_rows)
        widths = np.minimum(self.segment_cols, self.cols - across * self.segment_cols)
        ids = (down[:, None] * self.grid[1] + across[None, :]).reshape(-1)
        return replace(self, rows=int(heights.sum()), cols=int(widths.sum())), ids


@dataclass(frozen=True, slots=True, eq=False)
class Spans(Geometry):
    """Segments of a single row of words, of any widths and a tile each: small tensors, one after
    another, that are coded at once.

    Attributes
    ----------
    bounds
        int64: where each segment starts, and at the end where the last one stops.
    """

    bounds: NDArray[np.int64]

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def of(cls, widths: NDArray[np.int64]) -> Spans:
        """Segments of these widths, none of them 0."""
        bounds = np.zeros(widths.size + 1, np.int64)
        np.cumsum(widths, out=bounds[1:])
        widest = int(widths.max())
        return cls(1, int(bounds[-1]), 1, widest, 1, widest, bounds)

    @property
    def grid(self) -> tuple[int, int]:
        """A row of all segments."""
        return 1, self.bounds.size - 1

    def _sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        widths = np.diff(self.bounds)
        return np.ones_like(widths), widths, widths

    def corners(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `Geometry.corners`."""
        return np.zeros(self.bounds.size - 1, np.int64), self.bounds[:-1]

    def select(
        self, down: NDArray[np.int64], across: NDArray[np.int64]
    ) -> tuple[Geometry, NDArray[np.int64]]:
        """As `Geometry.select`; `down` is the only row."""
        return Spans.of(np.diff(self.bounds)[across]), across

    def rectangle(self, k: int) -> tuple[slice, slice]:
        """As `Geometry.rectangle`."""
        return slice(0, 1), slice(int(self.bounds[k]), int(self.bounds[k + 1]))


_KEPT_SEGMENTS: Final = 1 << 14  #: sizes of larger grids are not kept


@lru_cache(maxsize=8)
def _sizes(g: Geometry) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    n_down, n_across = g.grid
    heights = np.minimum(
        g.segment_rows, g.rows - np.arange(n_down, dtype=np.int64) * g.segment_rows
    )
    widths = np.minimum(
        g.segment_cols, g.cols - np.arange(n_across, dtype=np.int64) * g.segment_cols
    )
    down, across = np.repeat(heights, n_across), np.tile(widths, n_down)
    sizes = down, across, down * across
    for array in sizes:
        array.flags.writeable = False
    return sizes


def tiles(height: int, width: int, tile_rows: int, tile_cols: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of a segment's tiles in raster order, clipped at its edges (R6.8)."""
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            yield slice(r, min(r + tile_rows, height)), slice(c, min(c + tile_cols, width))


@lru_cache(maxsize=64)
def element_order(height: int, width: int, tile_rows: int, tile_cols: int) -> NDArray[np.int64]:
    """Raster indices of a segment's elements in the order in which they are coded:
    tile by tile (R6.9).
    """
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    return np.concatenate(
        [index[tile].reshape(-1) for tile in tiles(height, width, tile_rows, tile_cols)]
    )


def chunks(
    geometry: Geometry, word_nbytes: int, nbytes: int = CHUNK_NBYTES
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sub-grids that are coded at once: whole rows of segments up to `nbytes`.

    Where a row of segments is larger than that and one word high, it is cut; the words of a chunk
    are contiguous either way.
    """
    n_down, n_across = geometry.grid
    all_across = np.arange(n_across, dtype=np.int64)
    band = geometry.segment_rows * geometry.cols * word_nbytes
    if band > nbytes and min(geometry.segment_rows, geometry.rows) == 1:
        step = max(1, nbytes // (geometry.segment_cols * word_nbytes))
        for i in range(n_down):
            for j in range(0, n_across, step):
                yield np.array([i], np.int64), all_across[j : j + step]
    else:
        step = max(1, nbytes // max(band, 1))
        for i in range(0, n_down, step):
            yield np.arange(i, min(i + step, n_down), dtype=np.int64), all_across
