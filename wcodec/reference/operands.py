"""Operands: tensors that matrix kernels can read as they lie in the file. Spec: chapter 14.1."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.reference.differences import Difference
from wcodec.reference.planes import Layout
from wcodec.reference.segments import Coder
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry

SEGMENT: Final = (8, 1024)  #: rows and columns (R14.2)
TILE: Final = (8, 32)
DTYPES: Final = ("int8", "bfloat16", "float8_e4m3fn", "float8_e5m2")  #: by name (R14.1)
_CODERS: Final = (Coder.RAW, Coder.RANS)  #: of plane 0 (R14.4)


def is_of_operand(geometry: Geometry) -> bool:
    """Whether segments and tiles are those of an operand (R14.2);
    no others that the planner chooses by itself are.
    """
    g = geometry
    return (g.segment_rows, g.segment_cols, g.tile_rows, g.tile_cols) == SEGMENT + TILE


def operand_problem(t: TensorRecord) -> str | None:
    """Why a tensor is no operand, such as ``"segment 3 has layout BYTES"``;
    ``None`` if it is one.
    """
    return _problem_of_tensor(t) or _problem_of_segments(t)


def operand_form(t: TensorRecord) -> str | None:
    """``"rans"`` for an operand that has coded segments, ``"fixed"`` for one that has none;
    ``None`` for other tensors.
    """
    if operand_problem(t) is not None:
        return None
    return "rans" if (t.segments.coder[0] == Coder.RANS).any() else "fixed"


def _problem_of_tensor(t: TensorRecord) -> str | None:
    """R14.1, R14.2."""
    g = t.geometry
    if t.dtype.name not in DTYPES:
        return f"dtype {t.dtype.name}"
    if len(t.shape) != 2:
        return f"{len(t.shape)} dimensions"
    if g.n_segments == 0:
        return "it is empty"
    if t.row_rank != 1:
        return f"row_rank {t.row_rank}"
    if t.difference != Difference.NONE:
        return "it is a difference from a base"
    if (g.segment_rows, g.segment_cols) != SEGMENT:
        return f"segments of {g.segment_rows} x {g.segment_cols}"
    if (g.tile_rows, g.tile_cols) != TILE:
        return f"tiles of {g.tile_rows} x {g.tile_cols}"
    return None


def _problem_of_segments(t: TensorRecord) -> str | None:
    """R14.3 to R14.6. R7.2 has no prediction in pairs."""
    s = t.segments
    if (k := _first(s.layout != Layout.PAIRS)) is not None:
        return f"segment {k} has layout {Layout(s.layout[k]).name}"
    for p, known in enumerate((_CODERS, (Coder.RAW,))):
        if (k := _first(~np.isin(s.coder[p], known))) is not None:
            return f"plane {p} of segment {k} has coder {Coder(s.coder[p, k]).name}"
    coded = s.coder[0] == Coder.RANS
    heights, widths = t.geometry.sizes()
    if (k := _first(coded & ((heights != TILE[0]) | (widths % TILE[1] != 0)))) is not None:
        return f"segment {k} is coded and has {heights[k]} x {widths[k]} words, not whole tiles"
    numbers = s.table[0][coded]
    if (k := _first(numbers != numbers[:1])) is not None:
        return f"tables {numbers[0]} and {numbers[k]}, not one"
    return None


def _first(where: NDArray[np.bool_]) -> int | None:
    """The first place that is true."""
    return int(np.argmax(where)) if where.any() else None
