"""How tensors are cut into segments and tiles. Spec: chapter 14 (informative)."""

from __future__ import annotations

import math
from typing import Final

from wcodec.errors import EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.reference import operands
from wcodec.reference.planes import DType
from wcodec.reference.rans import GROUP
from wcodec.reference.tiles import MAX_RANK, MAX_SEGMENT_ELEMENTS, Geometry, matrix_view

EVEN: Final = 64  #: widths of bands are multiples of that many words: kernels move whole vectors
#: or of so many, where that of the matrix is: rows are whole groups then, in PAIRS too
WHOLE: Final = 2 * GROUP
MIN_ROW: Final = 64  #: fewest columns of a matrix view, where the shape allows
#: Segments that a large tensor has at least, or a few less: each costs about 107 bytes, but GPUs
#: and threads work on many at once.
ENOUGH: Final = 160
MAX_BAND: Final = 2048  #: columns of a segment of preset ``max``


def choose_row_rank(shape: tuple[int, ...]) -> int:
    """How many leading dimensions make the rows (R6.2): as many as leave rows of 64 elements."""
    rank = len(shape)
    for row_rank in range(rank - 1, 0, -1):
        if math.prod(shape[row_rank:]) >= MIN_ROW:
            return row_rank
    return 0


def choose_geometry(
    shape: tuple[int, ...], dtype: DType, options: EncodeOptions
) -> tuple[int, Geometry]:
    """`row_rank` and geometry of a tensor.

    Raises
    ------
    EncodeError
        ``resource_limit``: more than 32 dimensions.
    """
    if len(shape) > MAX_RANK:
        raise EncodeError(
            "resource_limit", f"{len(shape)} dimensions; the format has room for {MAX_RANK}"
        )
    if options.operand and dtype.name in operands.DTYPES and len(shape) == 2 and min(shape) > 0:
        return 1, Geometry(*shape, *operands.SEGMENT, *operands.TILE)
    row_rank, tile = choose_row_rank(shape), options.tile
    rows, cols = matrix_view(shape, row_rank, dtype.words_per_element)
    if options.segment is None:
        size = _large_segment if options.preset == "max" else _segment_size
        s_rows, s_cols = size(max(rows, 1), max(cols, 1), dtype.word_nbytes)
        if tile is not None:
            s_rows, s_cols = _whole_tiles(s_rows, s_cols, tile)
    else:
        s_rows, s_cols = options.segment
    t_rows, t_cols = tile or (s_rows, s_cols)
    return row_rank, Geometry(rows, cols, s_rows, s_cols, t_rows, t_cols)


def _segment_size(rows: int, cols: int, word_nbytes: int) -> tuple[int, int]:
    """Bands of equal width, near 256 or more, a multiple of 64, or of 256 if the number of columns
    is, but for the last one, wider where there are few rows, cut into segments of equal height near
    the target.

    The target is 2^15 words of up to 2 bytes, half as many larger ones, and up to four times as
    many where that leaves about `ENOUGH` segments. A matrix of up to two bands is one. A row of
    segments holds at most 2^24 words, so that it can be coded at once.
    """
    least = 1 << 15 if word_nbytes <= 2 else 1 << 14
    target = least
    while target < 4 * least and 2 * target * ENOUGH <= rows * cols:
        target *= 2
    most_rows = min(rows, max(1, MAX_SEGMENT_ELEMENTS // cols))
    wide = max(256, target // 128, target // most_rows)
    if most_rows == 1:
        return 1, min(cols, wide)
    s_cols, n_bands = cols, cols // wide
    if cols > 2 * wide:
        whole = cols // n_bands // WHOLE * WHOLE
        s_cols = -(-cols // (n_bands * EVEN)) * EVEN if cols % WHOLE else whole
    n_down = max(1, round(rows * s_cols / target), -(-rows // most_rows))
    return -(-rows // n_down), s_cols


def _large_segment(rows: int, cols: int, word_nbytes: int) -> tuple[int, int]:
    """Near 2^19 words of a byte, 2^18 of larger ones: bands of up to 2048 columns, of equal width
    near 1024 if there are more.
    """
    target = 1 << 19 if word_nbytes == 1 else 1 << 18
    most_rows = min(rows, max(1, MAX_SEGMENT_ELEMENTS // cols))
    if most_rows == 1:
        return 1, min(cols, target)
    wide = max(MAX_BAND // 2, target // most_rows)
    s_cols = cols if cols <= max(MAX_BAND, wide) else -(-cols // (-(-cols // wide) * EVEN)) * EVEN
    n_down = max(1, round(rows * s_cols / target), -(-rows // most_rows))
    return -(-rows // n_down), s_cols


def _whole_tiles(rows: int, cols: int, tile: tuple[int, int]) -> tuple[int, int]:
    """A segment size near another one that is a multiple of the tile's."""
    n_rows, n_cols = max(1, round(rows / tile[0])), max(1, round(cols / tile[1]))
    while n_rows > 1 and n_rows * n_cols * math.prod(tile) > MAX_SEGMENT_ELEMENTS:
        n_rows -= 1
    while n_cols > 1 and n_rows * n_cols * math.prod(tile) > MAX_SEGMENT_ELEMENTS:
        n_cols -= 1
    return n_rows * tile[0], n_cols * tile[1]
