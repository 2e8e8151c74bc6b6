"""Transforms: 8x8 integer DCT-II and ADST by lifting, modulo 256. Spec: chapter 8.

A lifting step adds to one value a rounded multiple of another one. So it is undone by subtracting
the same, whatever was rounded or wrapped: W. Sweldens, The lifting scheme, 1996; I. Daubechies and
W. Sweldens, Factoring wavelet transforms into lifting steps, 1998. The rotations are those of C.
Loeffler et al., Practical fast 1-D DCT algorithms with 11 multiplications, 1989 (DCT-II), and of J.
Han et al., A butterfly structured design of the hybrid transform coding scheme, 2013 (ADST: a
DST-IV).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Signed = NDArray[np.int16]

SIZE: Final = 8  #: values of a one-dimensional transform
FRACTION: Final = 7  #: bits after the point of the coefficients of lifting steps


class Transform(IntEnum):
    """Bits 4 to 6 of a mode (R7.1)."""

    NONE = 0
    DCT = 1
    ADST = 2


N_TRANSFORMS: Final = len(Transform)


#: Rows of five integers ``a, b, p, u, r``, each three lifting steps: ``y[a] += p y[b]``,
#: ``y[b] += u y[a]``, ``y[a] += r y[b]``, in 128ths. A rotation by t has ``p = r = -tan(t / 2)``,
#: ``u = sin(t)``; ``-128, 64, 0`` makes a difference and a mean.
ROWS: Final[dict[int, tuple[tuple[int, int, int, int, int], ...]]] = {
    Transform.DCT: (
        (7, 0, -128, 64, 0), (6, 1, -128, 64, 0), (5, 2, -128, 64, 0), (4, 3, -128, 64, 0),
        (3, 0, -128, 64, 0), (2, 1, -128, 64, 0), (1, 0, -128, 64, 0), (3, 2, 25, -49, 25),
        (7, 4, 13, -25, 13), (6, 5, 39, -71, 39), (7, 6, -53, 91, -53), (5, 4, -53, 91, -53),
        (7, 4, -53, 91, -53),
    ),
    Transform.ADST: (
        (0, 7, -6, 13, -6), (1, 6, -19, 37, -19), (2, 5, -32, 60, -32), (3, 4, -46, 81, -46),
        (0, 3, -53, 91, -53), (1, 2, -53, 91, -53), (0, 1, -53, 91, -53), (3, 2, -25, 49, -25),
        (7, 4, 53, -91, 53), (6, 5, 53, -91, 53), (7, 6, -53, 91, -53), (4, 5, 25, -49, 25),
        (2, 4, -53, 91, -53), (1, 7, -53, 91, -53), (3, 5, -53, 91, -53),
    ),
}  # fmt: skip
#: Coefficient k, counted from the lowest frequency, is value ``ORDER[k]`` after all steps.
ORDER: Final[dict[int, tuple[int, ...]]] = {
    Transform.DCT: (0, 6, 3, 7, 1, 4, 2, 5),
    Transform.ADST: (6, 4, 2, 1, 7, 3, 5, 0),
}


def steps(transform: int) -> list[tuple[int, int, int]]:
    """Lifting steps: ``target, source, coefficient``;
    the value of the source times the coefficient is added to the target.
    """
    flat = [s for a, b, p, u, r in ROWS[transform] for s in ((a, b, p), (b, a, u), (a, b, r))]
    return [s for s in flat if s[2]]


def _product(y: Signed, source: int, coefficient: int) -> Signed:
    return np.asarray(
        (y[..., source] * np.int16(coefficient) + np.int16(64)) >> np.int16(FRACTION), np.int16
    )


def _signed(y: Signed) -> Signed:
    """Wrapped to -128 .. 127."""
    return y.astype(np.int8).astype(np.int16)


def forward_1d(y: Signed, transform: int) -> Signed:
    """Coefficients of rows of `SIZE` values, all int16 from -128 to 127;
    transforms the last axis.
    """
    y = y.copy()
    for target, source, coefficient in steps(transform):
        y[..., target] = _signed(y[..., target] + _product(y, source, coefficient))
    return y[..., list(ORDER[transform])]


def inverse_1d(coefficients: Signed, transform: int) -> Signed:
    """Inverse of `forward_1d`: the steps backwards, subtracted."""
    y = np.empty_like(coefficients)
    y[..., list(ORDER[transform])] = coefficients
    for target, source, coefficient in reversed(steps(transform)):
        y[..., target] = _signed(y[..., target] - _product(y, source, coefficient))
    return y


def forward(tile: Bytes, transform: int) -> Bytes:
    """Transform all whole groups of 8 of each row, then of each column (R8.2).

    Parameters
    ----------
    tile
        uint8 array of shape (height, width), or (n, height, width) for n tiles at once;
        read as signed.
    """
    return _passes(tile, transform, (True, False))


def inverse(tile: Bytes, transform: int) -> Bytes:
    """Inverse of `forward`: columns first."""
    return _passes(tile, transform, (False, True))


def _passes(tile: Bytes, transform: int, order: tuple[bool, bool]) -> Bytes:
    if transform == Transform.NONE:
        return tile.copy()
    values, step = tile.view(np.int8).astype(np.int16), forward_1d if order[0] else inverse_1d
    for along_rows in order:
        view = values if along_rows else values.swapaxes(-1, -2)
        whole = view.shape[-1] // SIZE * SIZE
        if whole:
            groups = view[..., :whole].reshape(*view.shape[:-1], -1, SIZE)
            view[..., :whole] = step(groups, transform).reshape(*view.shape[:-1], whole)
    return values.astype(np.int8).view(np.uint8)
