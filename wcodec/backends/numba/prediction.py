"""Prediction: residuals of tiles, and tiles out of residuals. Spec: chapter 7.

Forwards, every residual depends on given bytes alone: the whole tile is one run of bytes, and the
first column is done over again. Backwards, LEFT, TOP and PLANAR are sums modulo 256 along the rows
or down the columns, and AVG is a chain in each row; the chains of 15 rows run side by side. All are
vectors of bytes (`prediction_vectors`), and plain loops where `ir.VARIANT` is ``"plain"``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba import prediction_vectors as vectors
from wcodec.backends.numba.arrays import copy
from wcodec.backends.numba.ir import VARIANT
from wcodec.backends.numba.kernels import call_native, jit
from wcodec.backends.numba.prediction_vectors import LANE
from wcodec.backends.numba.rans import TRANSFORMS
from wcodec.reference.prediction import CENTRE, N_MODES, PER_TILE, Mode
from wcodec.reference.transforms import N_TRANSFORMS

_PLAIN: Final = VARIANT == "plain"


# ---- residuals ---------------------------------------------------------------------------------
def _plain_residuals(mode: int) -> Any:
    def residuals(tile: Any, out: Any, first: Any, last: Any, width: Any) -> None:
        """Residuals of the bytes from `first` to `last`, which have all neighbours."""
        row, to, left = tile[first:last], out[first:last], tile[first - 1 : last - 1]
        if mode == Mode.LEFT:
            for i in range(row.size):
                to[i] = row[i] - left[i]
            return
        top = tile[first - width : last - width]
        if mode == Mode.TOP:
            for i in range(row.size):
                to[i] = row[i] - top[i]
        elif mode == Mode.AVG:
            for i in range(row.size):
                to[i] = row[i] - ((np.uint32(left[i]) + np.uint32(top[i])) >> np.uint32(1))
        else:
            corner = tile[first - width - 1 : last - width - 1]
            for i in range(row.size):
                to[i] = row[i] - left[i] - top[i] + corner[i]

    return jit(residuals)


@jit
def _first_column(tile: Any, out: Any, height: Any, width: Any) -> None:
    """The first column is TOP."""
    above, i = tile[0], np.uint64(0)
    for _ in range(1, height):
        i += np.uint64(width)
        here = tile[i]
        out[i] = here - above
        above = here


_residuals = _plain_residuals if _PLAIN else vectors.residuals
_left, _top, _avg, _planar = map(_residuals, (Mode.LEFT, Mode.TOP, Mode.AVG, Mode.PLANAR))


# ---- sums --------------------------------------------------------------------------------------
@jit
def _plain_along(tile: Any, at: Any, width: Any, carry: Any) -> None:
    """Each of `width` bytes at `at` becomes the sum of `carry`, those before it, and itself."""
    row, total = tile[at : at + width], np.uint32(carry)
    for c in range(width):
        total = (total + np.uint32(row[c])) & np.uint32(255)
        row[c] = total


@jit
def _plain_down(tile: Any, height: Any, width: Any) -> None:
    """Each byte of a tile becomes the sum of those above it and itself."""
    for r in range(1, height):
        above, row = tile[(r - 1) * width : r * width], tile[r * width : (r + 1) * width]
        for c in range(width):
            row[c] += above[c]


_sum_any_row, _sum_whole_row = (
    _plain_along if _PLAIN else vectors.sum_along(whole) for whole in (False, True)
)
_sum_down: Final = _plain_down if _PLAIN else vectors.sum_down


# ---- the inverse of AVG ------------------------------------------------------------------------
@jit
def _plain_average(tile: Any, height: Any, width: Any) -> None:
    """The rows below the first."""
    for r in range(1, height):
        above, row = tile[(r - 1) * width : r * width], tile[r * width : (r + 1) * width]
        left = np.uint32(above[0])
        for c in range(width):
            mean = (left + np.uint32(above[c])) >> np.uint32(1)
            left = (np.uint32(row[c]) + mean) & np.uint32(255)
            row[c] = left


@jit
def _vector_average(tile: Any, height: Any, width: Any) -> None:
    """As `_plain_average`."""
    if width < LANE:
        _plain_average(tile, height, width)
        return
    for r in range(1, height, LANE - 1):
        vectors.average_rows(tile, (r - 1) * width, min(LANE - 1, height - r), width)


_average: Final = _plain_average if _PLAIN else _vector_average


# ---- tiles -------------------------------------------------------------------------------------
@jit
def predict_tile(tile: Any, out: Any, height: Any, width: Any, mode: Any) -> None:
    """Residuals of a tile. The first row is LEFT, the first column TOP, whatever the mode."""
    n = height * width
    out[0] = tile[0]
    # a whole vector; what follows the row is redone
    _left(tile, out, 1, n if mode == Mode.LEFT else min(n, max(width, LANE + 1)), width)
    if mode == Mode.TOP:
        _top(tile, out, width, n, width)
        return
    if height > 1 and mode == Mode.AVG:
        _avg(tile, out, width + 1, n, width)
    elif height > 1 and mode != Mode.LEFT:
        _planar(tile, out, width + 1, n, width)
    _first_column(tile, out, height, width)


@jit
def reconstruct_tile(tile: Any, height: Any, width: Any, mode: Any) -> None:
    """Inverse of `predict_tile`, in place."""
    start = np.uint8(0)  # what the first column adds to the row
    for r in range(1 if mode == Mode.TOP or mode == Mode.AVG else height):
        first = tile[r * width]
        if width % LANE == 0:
            _sum_whole_row(tile, r * width, width, start)
        else:
            _sum_any_row(tile, r * width, width, start)
        if mode == Mode.LEFT:
            start = np.uint8(start + first)
    if mode == Mode.AVG:
        _average(tile, height, width)
    elif mode != Mode.LEFT:
        _sum_down(tile, height, width)


# ---- planes ------------------------------------------------------------------------------------
@jit
def _transform(tile: Any, height: Any, width: Any, mode: Any, inverse: Any, natives: Any) -> None:
    """Transform a tile in place, if the mode has a transform."""
    if mode >> 4:
        native = natives[TRANSFORMS + 2 * ((mode >> 4) - 1) + inverse]
        centre = CENTRE if mode & 15 == 0 else 0
        call_native(native, (tile.ctypes.data, height, width, centre))


@jit
def make_residuals(
    job: Any, matrix: Any, plane: Any, out: Any, mode: Any, modes: Any, natives: Any
) -> None:
    """Residuals, or coefficients, of all tiles of a plane.

    Parameters
    ----------
    plane, out
        uint8 in element order; a vector's bytes are there after each tile of `out`.
    mode
        Of all tiles, or PER_TILE.
    modes
        With PER_TILE the mode of each tile.
    natives
        `rans.Streams.natives`, with the transforms that these name.
    """
    height, width, at, i = job.height, job.width, 0, 0
    for r in range(0, height, matrix.tile_rows):
        for c in range(0, width, matrix.tile_cols):
            h, w = min(matrix.tile_rows, height - r), min(matrix.tile_cols, width - c)
            here = np.int64(modes[i]) if mode == PER_TILE else mode
            tile, to = plane[at : at + h * w], out[at : at + h * w]
            if here & 15:
                predict_tile(tile, to, h, w, here & 15)
            else:
                copy(tile, to)
            _transform(to, h, w, here, 0, natives)
            at += h * w
            i += 1


@jit
def restore_tiles(job: Any, matrix: Any, plane: Any, mode: Any, modes: Any, natives: Any) -> None:
    """Inverse of `make_residuals`, in place."""
    height, width, at, i = job.height, job.width, 0, 0
    for r in range(0, height, matrix.tile_rows):
        for c in range(0, width, matrix.tile_cols):
            h, w = min(matrix.tile_rows, height - r), min(matrix.tile_cols, width - c)
            here, tile = np.int64(modes[i]) if mode == PER_TILE else mode, plane[at : at + h * w]
            _transform(tile, h, w, here, 1, natives)
            if here & 15:
                reconstruct_tile(tile, h, w, here & 15)
            at += h * w
            i += 1


@jit
def are_modes(modes: Any) -> Any:
    """Whether all bytes are modes (R7.1)."""
    good = True
    for i in range(modes.size):
        good &= modes[i] & 15 < N_MODES and modes[i] >> 4 < N_TRANSFORMS
    return good
