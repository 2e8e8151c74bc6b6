"""Differences of words (spec: R12.5): loops of which LLVM makes vectors.

All arrays are flat, unsigned, of one type.
"""

from __future__ import annotations

from typing import Any

from wcodec.backends.numba.compiling import kernel


@kernel
def xor_range(words: Any, base: Any, out: Any) -> None:
    """Difference XOR, and its inverse."""
    for i in range(out.size):
        out[i] = words[i] ^ base[i]


@kernel
def subtract_range(words: Any, base: Any, out: Any, top: Any) -> None:
    """Difference MINUS; `top` is the number of a word's top bit."""
    for i in range(out.size):
        d = words[i] - base[i]
        out[i] = d << 1 ^ -(d >> top & 1)


@kernel
def add_range(coded: Any, base: Any, out: Any) -> None:
    """Inverse of `subtract_range`."""
    for i in range(out.size):
        z = coded[i]
        out[i] = base[i] + (z >> 1 ^ -(z & 1))
