"""The structures that the host fills in for the kernels:
those of ``kernels/common.cuh``, field by field.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_U8, _U16, _U32, _U64 = "<u1", "<u2", "<u4", "<u8"


def _struct(fields: list[tuple[Any, ...]]) -> np.dtype[Any]:
    return np.dtype(fields)


TABLE: Final = _struct([("prob_bits", _U32), ("padding", _U32), ("freq", _U16, (256,))])
CONTEXT_MAP: Final = _struct(
    [("kind", _U32), ("prob_bits", _U32), ("tables", _U32, (16,)), ("class_of", _U8, (256,))]
)
TENSOR: Final = _struct([
    ("cols", _U64), ("tile_rows", _U32), ("tile_cols", _U32),
    ("word_nbytes", _U32), ("map", _U32), ("exponent_bits", _U32), ("n_planes", _U32),
])  # fmt: skip
SEGMENT: Final = _struct([
    ("words", _U64), ("record", _U64), ("modes", _U64), ("scales", _U64), ("patches", _U64),
    ("scales_nbytes", _U32), ("n_patches", _U32), ("tensor", _U32), ("plane", _U32),
    ("height", _U32), ("width", _U32), ("n_tiles", _U32),
    ("layout", _U8), ("base", _U8), ("fill", _U8), ("reserved", _U8),
])  # fmt: skip
PLANE: Final = _struct([
    ("at", _U64), ("symbols", _U64), ("residuals", _U64), ("classes", _U64), ("nbytes", _U32),
    ("n_symbols", _U32), ("table", _U32), ("segment", _U32),
    ("coder", _U8), ("prediction", _U8), ("index", _U8), ("reserved", _U8), ("reserved_2", _U32),
])  # fmt: skip
BATCH: Final = _struct([("first", _U32), ("count", _U32), ("table", _U32), ("reserved", _U32)])
