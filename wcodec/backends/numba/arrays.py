"""Small loops over arrays, which become a part of most kernels."""

from __future__ import annotations

from typing import Any

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
