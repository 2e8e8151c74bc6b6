"""Modes of tiles: prediction of each byte from its decoded neighbours, modulo 256, and a transform.
Spec: chapters 7 and 8.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import transforms
from wcodec.reference.transforms import Transform

Bytes = NDArray[np.uint8]


class Mode(IntEnum):
    """Predictions: bits 0 to 3 of a mode (R7.1)."""

    NONE = 0
    LEFT = 1
    TOP = 2
    AVG = 3
    PLANAR = 4


N_MODES: Final = len(Mode)
#: in the prediction column: the segment record holds a mode for each tile (R10.4)
PER_TILE: Final = 255
MODES: Final = tuple(t << 4 | p for t in Transform for p in Mode)  #: all bytes that are modes
IS_MODE: Final = np.isin(np.arange(256), MODES)
CENTRE: Final = 128  #: what NONE predicts in front of a transform: bytes become signed (R8.1)


def mode_name(mode: int) -> str:
    """Name of a mode, as in ``planar+dct``.

    Raises
    ------
    ValueError
        It is none.
    """
    prediction, transform = Mode(mode & 15).name.lower(), Transform(mode >> 4).name.lower()
    return (
        prediction
        if transform == "none"
        else transform
        if prediction == "none"
        else f"{prediction}+{transform}"
    )


def residuals(tile: Bytes, mode: int) -> Bytes:
    """What a mode makes of a tile: its prediction's residuals, transformed.
    Shapes as for `predict`.
    """
    transform = mode >> 4
    if transform == Transform.NONE:
        return predict(tile, mode)
    return transforms.forward(
        predict(tile, mode & 15) if mode & 15 else tile - np.uint8(CENTRE), transform
    )


def restore(coded: Bytes, mode: int) -> Bytes:
    """Inverse of `residuals`."""
    transform = mode >> 4
    if transform == Transform.NONE:
        return reconstruct(coded, mode)
    tile = transforms.inverse(coded, transform)
    return reconstruct(tile, mode & 15) if mode & 15 else tile + np.uint8(CENTRE)


def predict(tile: Bytes, mode: int) -> Bytes:
    """Residuals of a tile: ``value - prediction`` mod 256 (R7.2 to R7.6).

    Parameters
    ----------
    tile
        uint8 array of shape (height, width), or (n, height, width) for n tiles at once.
    """
    if mode == Mode.NONE:
        return tile.copy()
    residual = tile.copy()
    left, top = tile[..., :, :-1], tile[..., :-1, :]
    residual[..., 0, 1:] -= left[..., 0, :]  # first row: LEFT, whatever the mode
    residual[..., 1:, 0] -= top[..., :, 0]  # first column: TOP
    left, top, corner = left[..., 1:, :], top[..., :, 1:], tile[..., :-1, :-1]
    if mode == Mode.LEFT:
        residual[..., 1:, 1:] -= left
    elif mode == Mode.TOP:
        residual[..., 1:, 1:] -= top
    elif mode == Mode.AVG:
        residual[..., 1:, 1:] -= ((left.astype(np.uint16) + top) >> 1).astype(np.uint8)
    elif mode == Mode.PLANAR:
        residual[..., 1:, 1:] -= left + top - corner
    else:
        raise ValueError(f"{mode} is not a prediction mode")
    return residual


def reconstruct(residual: Bytes, mode: int) -> Bytes:
    """Inverse of `predict`; LEFT, TOP and PLANAR are prefix sums mod 256,
    AVG is the loop that it looks like.
    """
    if mode == Mode.NONE:
        return residual.copy()
    if mode == Mode.PLANAR:
        return _sums(_sums(residual, -2), -1)
    tile = residual.copy()
    if mode == Mode.LEFT:
        tile[..., :, 0] = _sums(tile[..., :, 0], -1)
        return _sums(tile, -1)
    tile[..., 0, :] = _sums(tile[..., 0, :], -1)
    if mode == Mode.TOP:
        return _sums(tile, -2)
    if mode != Mode.AVG:
        raise ValueError(f"{mode} is not a prediction mode")
    tile[..., :, 0] = _sums(tile[..., :, 0], -1)
    for r in range(1, tile.shape[-2]):
        for c in range(1, tile.shape[-1]):
            mean = (tile[..., r, c - 1].astype(np.uint16) + tile[..., r - 1, c]) >> 1
            tile[..., r, c] += mean.astype(np.uint8)
    return tile


def _sums(a: Bytes, axis: int) -> Bytes:
    return np.cumsum(a, axis=axis, dtype=np.uint8)
