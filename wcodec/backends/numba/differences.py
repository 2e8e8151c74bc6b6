"""Differences of words (spec: R12.5): loops of which LLVM makes vectors.

All arrays are flat, of one type of words. There is a kernel for each size of words in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from wcodec.backends.numba.kernels import Int, Kernel, Words
from wcodec.reference.planes import WORD_TYPES


def _for_words(function: Callable[..., Any]) -> dict[int, Kernel]:
    return {nbytes: Kernel(function, word) for nbytes, word in WORD_TYPES.items()}


def _xor_range(words: Words, base: Words, out: Words) -> None:
    """Difference XOR, and its inverse."""
    for i in range(out.size):
        out[i] = words[i] ^ base[i]


def _subtract_range(words: Words, base: Words, out: Words, top: Int) -> None:
    """Difference MINUS; `top` is the number of a word's top bit."""
    for i in range(out.size):
        d = words[i] - base[i]
        out[i] = d << 1 ^ -(d >> top & 1)


def _add_range(coded: Words, base: Words, out: Words) -> None:
    """Inverse of `_subtract_range`."""
    for i in range(out.size):
        z = coded[i]
        out[i] = base[i] + (z >> 1 ^ -(z & 1))


XOR: Final = _for_words(_xor_range)
SUBTRACT: Final = _for_words(_subtract_range)
ADD: Final = _for_words(_add_range)
