"""Small loops over arrays, which become a part of most kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from wcodec.backends.numba.kernels import jit


@jit
def copy(source: Any, target: Any) -> None:
    """Copy equally long arrays."""
    for i in range(source.size):
        target[i] = source[i]


@jit
def fill(target: Any, value: Any) -> None:
    """Set all of an array."""
    for i in range(target.size):
        target[i] = value


@jit
def padded(nbytes: Any) -> Any:
    """Rounded up to a multiple of 16."""
    return (nbytes + 15) & ~15


@jit
def put(source: Any, record: Any, at: Any) -> Any:
    """Write bytes and their padding into a record; returns where the next part starts."""
    end = at + source.size
    copy(source, record[at:end])
    fill(record[end : padded(end)], 0)
    return padded(end)


@jit
def count(symbols: Any, four: Any, counts: Any) -> None:
    """Count symbols: four counts of each, so that equal neighbours do not wait for each other.
    Eight are loaded at once.
    """
    fill(four, 0)
    eights = symbols[: symbols.size // 8 * 8].view(np.uint64)
    for i in range(eights.size):
        x = eights[i]
        for k in range(8):
            symbol = x >> np.uint64(8 * k) & np.uint64(255)
            four[np.uint64(256 * (k & 3)) + symbol] += np.uint32(1)
    for i in range(8 * eights.size, symbols.size):
        four[symbols[i]] += np.uint32(1)
    for i in range(256):
        counts[i] = np.int64(four[i]) + four[256 + i] + four[512 + i] + four[768 + i]
