"""CRC-32 of parts and of wholes. Spec: chapter 11."""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def crc32(data: Any, start: int = 0) -> int:
    """CRC-32 as in zlib, gzip and PNG, of anything with a contiguous buffer;
    `start` continues an earlier one.
    """
    return zlib.crc32(data, start)


_POLYNOMIAL = 0xEDB88320  # reflected; bit 31 is the coefficient of x^0


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials over GF(2), modulo the CRC's polynomial, bits reflected."""
    product = 0
    while a:
        if a & 0x80000000:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def crc32_combine(first: int, second: int, second_nbytes: int) -> int:
    """CRC-32 of two parts together from those of the parts: ``first * x^(8 n) + second``."""
    return _multiply(_power(second_nbytes), first) ^ second if first else second


@lru_cache(maxsize=256)
def _power(nbytes: int) -> int:
    """``x^(8 nbytes)``, modulo the CRC's polynomial."""
    power, square, n = 0x80000000, 0x00800000, nbytes  # x^0, x^8
    while n:
        if n & 1:
            power = _multiply(square, power)
        square, n = _multiply(square, square), n >> 1
    return power


def crc32_each(payload: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """CRC-32 of each piece ``payload[offsets[k] : offsets[k + 1]]``.
    Returns uint32 of length ``len(offsets) - 1``.
    """
    view, at = payload.data, offsets.tolist()
    return np.array([zlib.crc32(view[a:b]) for a, b in pairwise(at)], np.uint32)
