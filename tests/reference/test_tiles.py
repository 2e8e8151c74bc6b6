"""Matrix views, segments, tiles and the order of elements, by literal examples."""

from __future__ import annotations

import numpy as np
import pytest

from wcodec.reference.tiles import Geometry, element_order, matrix_view, tiles


@pytest.mark.parametrize(
    ("shape", "row_rank", "words", "expected"),
    [
        ((), 0, 1, (1, 1)),
        ((5,), 0, 1, (1, 5)),
        ((5,), 1, 1, (5, 1)),
        ((2, 3, 4), 1, 1, (2, 12)),
        ((2, 3), 1, 2, (2, 6)),
        ((0, 3), 1, 1, (0, 3)),
    ],
)
def test_matrix_views(
    shape: tuple[int, ...], row_rank: int, words: int, expected: tuple[int, int]
) -> None:
    assert matrix_view(shape, row_rank, words) == expected


def test_elements_run_tile_by_tile_in_raster_order_ragged_edges_clipped() -> None:
    # 3 x 5 elements in tiles of 2 x 2:   0  1 |  2  3 |  4
    #                                     5  6 |  7  8 |  9
    #                                    ------+-------+----
    #                                    10 11 | 12 13 | 14
    assert element_order(3, 5, 2, 2).tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert element_order(3, 5, 3, 5).tolist() == list(range(15))
    assert len(list(tiles(3, 5, 2, 2))) == 6


def test_segments_are_numbered_in_raster_order_and_clipped() -> None:
    g = Geometry(rows=5, cols=7, segment_rows=2, segment_cols=4, tile_rows=2, tile_cols=4)
    assert g.grid == (3, 2)
    assert g.n_segments == 6
    assert g.one_tile
    assert g.rectangle(0) == (slice(0, 2), slice(0, 4))
    assert g.rectangle(3) == (slice(2, 4), slice(4, 7))
    assert g.rectangle(5) == (slice(4, 5), slice(4, 7))
    heights, widths = g.sizes()
    assert heights.tolist() == [2, 2, 2, 2, 1, 1]
    assert widths.tolist() == [4, 3, 4, 3, 4, 3]


def test_tiles_are_counted_with_ragged_ones() -> None:
    g = Geometry(rows=50, cols=40, segment_rows=32, segment_cols=32, tile_rows=16, tile_cols=16)
    assert not g.one_tile
    assert g.tile_counts().tolist() == [4, 2, 4, 2]  # 32 x 32, 32 x 8, 18 x 32, 18 x 8


def test_an_empty_matrix_has_no_segments() -> None:
    for rows, cols in ((0, 5), (5, 0), (0, 0)):
        g = Geometry(rows, cols, 1, 1, 1, 1)
        assert g.grid == (0, 0)
        assert g.n_segments == 0
        assert [a.size for a in g.sizes()] == [0, 0]


def test_a_selection_of_segments_is_a_geometry_again() -> None:
    g = Geometry(rows=5, cols=7, segment_rows=2, segment_cols=4, tile_rows=2, tile_cols=4)
    part, ids = g.select(np.array([0, 2]), np.array([1]))
    assert ids.tolist() == [1, 5]
    assert (part.rows, part.cols) == (3, 3)
    assert part.grid == (2, 1)
