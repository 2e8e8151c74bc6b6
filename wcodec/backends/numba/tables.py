"""Loops over frequency tables: reading serialised ones, and what decoders look up.

Spec: chapter 9.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wcodec.backends.numba.compiling import jit, kernel
from wcodec.backends.numba.rans import fill


@jit
def _bit(data: Any, at: Any) -> Any:
    return (np.int64(data[at >> 3]) >> (7 - (at & 7))) & 1


@kernel
def read_tables(data: Any, offset: Any, freq: Any, prob_bits: Any) -> Any:
    """Read as many tables as `freq` has rows, which are 0.

    Returns the offset behind the last one, or -1 if one breaks a rule of the codes;
    `wcodec.reference.entropy.Table` checks the others.
    """
    end = 8 * data.size
    for t in range(len(freq)):
        if data.size - offset < 4:
            return -1
        prob_bits[t], first, last, k = (
            data[offset],
            data[offset + 1],
            data[offset + 2],
            np.int64(data[offset + 3]),
        )
        if not 9 <= prob_bits[t] <= 12 or first > last or k >= 12:
            return -1
        at = 8 * (offset + 4)
        for symbol in range(first, last + 1):
            zeros = 0
            while at < end and _bit(data, at) == 0:
                zeros += 1
                at += 1
            if zeros > 12 or at + zeros + 1 + k > end:
                return -1
            value = 0
            for _ in range(zeros + 1 + k):
                value = value << 1 | _bit(data, at)
                at += 1
            freq[t, symbol] = value - (1 << k)
        while at & 7:
            if _bit(data, at):
                return -1
            at += 1
        if freq[t, first] == 0 or freq[t, last] == 0:
            return -1
        offset = at >> 3
    return offset


@kernel
def fill_luts(freq: Any, luts: Any) -> None:
    """Decoding tables, as `wcodec.reference.entropy.Table.lut`, of tables of frequencies; shorter
    ones end in 0.
    """
    for t in range(freq.shape[0]):
        lut, slot = luts[t], 0
        for symbol in range(256):
            f = freq[t, symbol]
            own = lut[slot : slot + f]
            for i in range(own.size):
                own[i] = np.uint32(f << 20 | i << 8 | symbol)
            slot += f
        fill(lut[slot:], 0)
