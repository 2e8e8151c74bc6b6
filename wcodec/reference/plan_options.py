"""What a caller can choose, and the geometry of tensors. Spec: chapter 14 (informative)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.errors import EncodeError
from wcodec.reference import entropy
from wcodec.reference.planes import DType
from wcodec.reference.prediction import Mode
from wcodec.reference.tiles import MAX_RANK, MAX_SEGMENT_ELEMENTS, MIN_TILE, Geometry, matrix_view
from wcodec.reference.transforms import Transform

PRESETS: Final = ("fast", "default", "max")
LAYOUTS: Final = ("auto", "raw", "bytes", "pairs")
PREDICTORS: Final = ("auto", *(m.name.lower() for m in Mode))
TRANSFORMS: Final = ("auto", *(t.name.lower() for t in Transform))
CODERS: Final = ("auto", "raw", "rans", "context")
OPERANDS: Final = ("fixed", "rans")

OPERAND_SEGMENT: Final = (8, 1024)  #: rows and columns (R14.2)
OPERAND_TILE: Final = (8, 32)
OPERAND_DTYPES: Final = ("int8", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_OPERAND_RULES_OUT: Final = ("segment", "tile", "predictor", "min_saving", "preset", "transform", "coder")

CHUNK_NBYTES: Final = 1 << 24  #: words planned and encoded at once
EVEN: Final = 64  #: widths of bands are multiples of that many words: kernels move whole vectors
MIN_ROW: Final = 64  #: fewest columns of a matrix view, where the shape allows
MAX_BAND: Final = 2048  #: columns of a segment of preset ``max``


@dataclass(frozen=True)
class EncodeOptions:
    """Choices that a caller can take out of the encoder's hands.

    Parameters
    ----------
    segment
        Rows and columns of a segment in the matrix view, which is a single row if the last dimensions make fewer than 64
        columns (spec: R6.2, chapter 14); by default about 32768 words, 16384 of 4 or 8 bytes; in preset ``max`` 524288 of a byte,
        262144 of larger ones.
    tile
        Rows and columns of a tile, at least 16. With `segment` each is a divisor of the segment's, or the whole; without, segments
        are made of whole tiles. By default a segment is one tile.
    predictor
        ``"auto"``, or one prediction for all coded byte planes: ``"none"``, ``"left"``, ``"top"``, ``"avg"``, ``"planar"``; it
        comes without a transform unless `transform` names one.
    layout
        ``"auto"``, ``"raw"``, ``"bytes"`` or ``"pairs"``; dtypes that have no pairs are then stored in bytes.
    prob_bits
        log2 of the sum of a table's frequencies, 9 to 12.
    min_saving
        Part of a plane's bytes that coding must save, or it is stored raw. Below 0 forces coding. By default 0.02, and 0 in
        preset ``max``.
    preset
        ``"fast"`` (encode speed first), ``"default"``, ``"max"`` (size first).
    transform
        ``"auto"``, or one transform for all coded byte planes: ``"none"``, ``"dct"``, ``"adst"``; it comes behind the prediction
        of `predictor`, with ``"auto"`` the one that costs least.
    coder
        ``"auto"``; ``"raw"``: no plane is coded; ``"rans"``: no plane has contexts; ``"context"``: all coded planes of layout
        BYTES have.
    operand
        ``"fixed"`` or ``"rans"``: matrices of int8, bfloat16, float8_e4m3fn and float8_e5m2 become operands of matrix kernels
        (spec: chapter 14.1), with codes as they are or coded. Other tensors are coded as without it. It comes with `prob_bits` and
        `layout` ``"auto"`` or ``"pairs"`` alone. A small or narrow matrix may become larger, by up to 56 bytes for each 8 rows. With
        ``"auto"``, a matrix with a segment of many patches becomes no operand; with ``"pairs"``, it does, and may become larger.

    Raises
    ------
    EncodeError
        ``bad_option``: out of range, or a mode, contexts or an operand that another option rules out.
    """

    segment: tuple[int, int] | None = None
    tile: tuple[int, int] | None = None
    predictor: str = "auto"
    layout: str = "auto"
    prob_bits: int = entropy.MAX_PROB_BITS
    min_saving: float | None = None
    preset: str = "default"
    transform: str = "auto"
    coder: str = "auto"
    operand: str | None = None

    def __post_init__(self) -> None:
        for field, names in (
            ("preset", PRESETS), ("layout", LAYOUTS), ("predictor", PREDICTORS), ("transform", TRANSFORMS), ("coder", CODERS),
        ):  # fmt: skip
            _require(getattr(self, field) in names, f"{field} {getattr(self, field)!r} is none of {', '.join(names)}")
        low, high = entropy.MIN_PROB_BITS, entropy.MAX_PROB_BITS
        _require(low <= self.prob_bits <= high, f"prob_bits {self.prob_bits} is not {low} to {high}")
        _require(-64 <= self.saving <= 1, f"min_saving {self.min_saving} is not -64 to 1")
        bytes_only = [f"{k} {v}" for k, v in (("predictor", self.predictor), ("transform", self.transform)) if v not in ("auto", "none")]
        bytes_only += ["coder context"] * (self.coder == "context")
        for name in bytes_only:
            _require(self.layout in ("auto", "bytes"), f"{name} needs layout bytes, not {self.layout}")
            _require(self.coder != "raw", f"{name} needs planes that are coded, not coder raw")
        self._check_sizes()
        self._check_operand()

    def _check_operand(self) -> None:
        if self.operand is not None:
            _require(self.operand in OPERANDS, f"operand {self.operand!r} is none of {', '.join(OPERANDS)}")
            for field in _OPERAND_RULES_OUT:
                value = getattr(self, field)
                _require(value == getattr(EncodeOptions, field), f"operand {self.operand} goes without {field} {value}")
            _require(self.layout in ("auto", "pairs"), f"operand {self.operand} needs layout pairs, not {self.layout}")

    def _check_sizes(self) -> None:
        if self.segment is not None:
            _require(min(self.segment) >= 1, "a segment size is below 1")
            _require(math.prod(self.segment) <= MAX_SEGMENT_ELEMENTS, f"segments of more than {MAX_SEGMENT_ELEMENTS} elements")
        if self.tile is not None:
            _require(min(self.tile) >= 1, "a tile size is below 1")
            if self.segment is None:
                _require(min(self.tile) >= MIN_TILE, f"tiles of fewer than {MIN_TILE} rows or columns need a segment size")
                _require(math.prod(self.tile) <= MAX_SEGMENT_ELEMENTS, f"tiles of more than {MAX_SEGMENT_ELEMENTS} elements")
            for s, t in zip(self.segment or (), self.tile, strict=self.segment is not None):
                _require(s % t == 0 and (t >= MIN_TILE or t == s), f"tile size {t} does not fit segment size {s}")

    @property
    def saving(self) -> float:
        """`min_saving`, or the preset's."""
        if self.min_saving is None:
            return 0.0 if self.preset == "max" else 0.02
        return self.min_saving

    @property
    def modes(self) -> tuple[int, ...] | None:
        """Modes to choose from; ``None`` for all."""
        if self.predictor == self.transform == "auto":
            return None
        transform = 0 if self.transform == "auto" else int(Transform[self.transform.upper()]) << 4
        return tuple(transform | int(m) for m in Mode if self.predictor in ("auto", m.name.lower()))

    @property
    def forces_mode(self) -> bool:
        """Whether a prediction or transform is asked for, which only layout BYTES has."""
        return self.modes is not None and 0 not in self.modes

    @property
    def trusts_sample(self) -> bool:
        """Whether choices are made from a part of the words."""
        return self.preset == "fast" and self.saving >= 0 and not self.forces_mode and self.coder in ("auto", "rans")

    @property
    def contexts(self) -> bool:
        """Whether planes may be coded with contexts."""
        return self.layout in ("auto", "bytes") and (self.coder == "context" or (self.coder == "auto" and self.preset == "max"))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise EncodeError("bad_option", message)


# ---- geometry ------------------------------------------------------------------------------------------------------------
def choose_row_rank(shape: tuple[int, ...]) -> int:
    """How many leading dimensions make the rows (R6.2): as many as leave rows of 64 elements."""
    rank = len(shape)
    for row_rank in range(rank - 1, 0, -1):
        if math.prod(shape[row_rank:]) >= MIN_ROW:
            return row_rank
    return 0


def choose_geometry(shape: tuple[int, ...], dtype: DType, options: EncodeOptions) -> tuple[int, Geometry]:
    """`row_rank` and geometry of a tensor.

    Raises
    ------
    EncodeError
        ``resource_limit``: more than 32 dimensions.
    """
    if len(shape) > MAX_RANK:
        raise EncodeError("resource_limit", f"{len(shape)} dimensions; the format has room for {MAX_RANK}")
    if options.operand and dtype.name in OPERAND_DTYPES and len(shape) == 2 and min(shape) > 0:
        return 1, Geometry(*shape, *OPERAND_SEGMENT, *OPERAND_TILE)
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


def is_of_operand(geometry: Geometry) -> bool:
    """Whether segments and tiles are those of an operand (R14.2); no others that `choose_geometry` chooses by itself are."""
    g = geometry
    return (g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols) == OPERAND_SEGMENT + OPERAND_TILE


def _segment_size(rows: int, cols: int, word_nbytes: int) -> tuple[int, int]:
    """Bands of equal width near 256, a multiple of 64 but for the last one, wider where there are few rows, cut into segments of
    equal height near the target.

    A matrix of up to two bands is one. A row of segments holds at most 2^24 words, so that it can be coded at once.
    """
    target = 1 << 15 if word_nbytes <= 2 else 1 << 14
    most_rows = min(rows, max(1, MAX_SEGMENT_ELEMENTS // cols))
    wide = max(256, target // most_rows)
    if most_rows == 1:
        return 1, min(cols, wide)
    s_cols = cols if cols <= 2 * wide else -(-cols // (cols // wide * EVEN)) * EVEN
    n_down = max(1, round(rows * s_cols / target), -(-rows // most_rows))
    return -(-rows // n_down), s_cols


def _large_segment(rows: int, cols: int, word_nbytes: int) -> tuple[int, int]:
    """Near 2^19 words of a byte, 2^18 of larger ones: bands of up to 2048 columns, of equal width near 1024 if there are more."""
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


def chunks(geometry: Geometry, word_nbytes: int, nbytes: int = CHUNK_NBYTES) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sub-grids that are coded at once: whole rows of segments up to `nbytes`.

    Where a row of segments is larger than that and one word high, it is cut; the words of a chunk are contiguous either way.
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
