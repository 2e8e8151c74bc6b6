"""Frequency tables: read, and made into what encoders and decoders look up. Spec: chapter 9.1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba.arguments import EncodingTables
from wcodec.backends.numba.arrays import fill
from wcodec.backends.numba.ir import BYTE_LOOKUP
from wcodec.backends.numba.kernels import Bytes, Int, Ints, Ints2, UInts32x2, jit, kernel
from wcodec.reference.tables import MAX_PROB_BITS, MIN_PROB_BITS, Table


@jit
def _bit(data: Any, at: Any) -> Any:
    return (np.int64(data[at >> 3]) >> (7 - (at & 7))) & 1


@kernel
def read_tables(data: Bytes, offset: Int, freq: Ints2, prob_bits: Ints) -> Int:
    """Read as many tables as `freq` has rows, which are 0.

    Returns the offset after the last one, or -1 if one breaks a rule of the codes;
    `wcodec.reference.tables.Table` checks the others.
    """
    end = 8 * data.size
    for t in range(len(freq)):
        if data.size - offset < 4:
            return -1
        prob_bits[t], first, last = data[offset], data[offset + 1], data[offset + 2]
        k = np.int64(data[offset + 3])
        if not MIN_PROB_BITS <= prob_bits[t] <= MAX_PROB_BITS or first > last or k >= 12:
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
def fill_luts(freq: Ints2, luts: UInts32x2) -> None:
    """Make decoding tables, as `wcodec.reference.tables.Table.lut`; shorter ones end in 0.

    Parameters
    ----------
    freq
        int64 of shape (n, 256).
    luts
        uint32 of shape (n, 4096): filled.
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


def frequencies(tables: list[Table]) -> NDArray[np.int64]:
    """Of all symbols of some tables, one row each."""
    out = np.empty((len(tables), 256), np.int64)
    for line, table in zip(out, tables, strict=True):
        line[:] = table.freq
    return out


def encoding_tables(tables: list[Table]) -> tuple[EncodingTables, NDArray[np.uint8]]:
    """What encodes by some tables.

    Codes of a symbol, for plain loops, are ``ceil(2 ** (32 + prob_bits) / freq)`` and ``freq << 32
    | start``. Entries, for `rans_vectors`, are ``freq << 20 | start << 8``: as three planes of
    bytes where the CPU looks those up, otherwise as words.

    Returns
    -------
    The tables, and their entries as words, which symbols with contexts need.
    """
    freq = frequencies(tables).astype(np.uint64)
    prob_bits = np.array([t.prob_bits for t in tables], np.int64)
    padding = np.array([t.padding for t in tables], np.int64)
    start = np.cumsum(freq, axis=1) - freq
    one = np.uint64(1) << (np.uint64(32) + prob_bits.astype(np.uint64).reshape(-1, 1))
    some = np.maximum(freq, np.uint64(1))
    reciprocals = (one + some - np.uint64(1)) // some
    codes = np.stack([reciprocals, freq << np.uint64(32) | start], axis=-1).reshape(-1, 2)
    packed = (freq << np.uint64(20) | start << np.uint64(8)).astype("<u4")
    words = packed.view(np.uint8).reshape(len(tables), 1024)
    entries = words
    if BYTE_LOOKUP:
        planes = words.reshape(-1, 256, 4)[:, :, 1:].transpose(0, 2, 1)
        entries = np.ascontiguousarray(planes).reshape(len(tables), 768)
    return EncodingTables(codes, entries, prob_bits, padding), words
