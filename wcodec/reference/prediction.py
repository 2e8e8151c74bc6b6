"""Prediction: each byte of a tile from its decoded neighbours, modulo 256. Spec: chapter 7."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Mode(IntEnum):
    """Prediction modes (R7.1)."""

    NONE = 0
    LEFT = 1
    TOP = 2
    AVG = 3
    PLANAR = 4


N_MODES: Final = len(Mode)
PER_TILE: Final = 255  #: in the prediction column: the segment record holds a mode for each tile (R10.4)


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
    """Inverse of `predict`; LEFT, TOP and PLANAR are prefix sums mod 256, AVG is the loop that it looks like."""
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
