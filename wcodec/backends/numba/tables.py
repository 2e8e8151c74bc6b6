"""Frequency tables: read, and made into what encoders and decoders look up. Spec: chapter 9.1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba.arguments import EncodingTables
from wcodec.backends.numba.arrays import fill
from wcodec.backends.numba.ir import BYTE_LOOKUP
from wcodec.backends.numba.kernels import (
    Bytes,
    Bytes2,
    Int,
    Ints,
    Ints2,
    UInts32x2,
    UInts64x2,
    jit,
    kernel,
)
from wcodec.reference.tables import MAX_PROB_BITS, MIN_PROB_BITS, Table


@jit
def _bit(data: Any, at: Any) -> Any:
    return (np.int64(data[at >> 3]) >> (7 - (at & 7))) & 1


@kernel
def read_tables(data: Bytes, offset: Int, freq: Ints2, prob_bits: Ints) -> Int:
    """Read as many tables as `freq` has rows, which are 0.

    Returns the offset after the last one, or -1 if one breaks a rule.
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
        total, most = np.int64(0), np.int64(0)
        for symbol in range(first, last + 1):
            total, most = total + freq[t, symbol], max(most, freq[t, symbol])
        whole = np.int64(1) << prob_bits[t]
        if freq[t, first] == 0 or freq[t, last] == 0 or total != whole or most == whole:
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


@kernel
def fill_entries(
    freq: Ints2, prob_bits: Ints, codes: UInts64x2, words: Bytes2, entries: Bytes2, padding: Ints
) -> None:
    """Make encoding tables; see `encoding_tables`. All but the first two are filled."""
    for t in range(freq.shape[0]):
        start, most = np.int64(0), np.int64(0)
        for symbol in range(256):
            f, i = freq[t, symbol], 256 * t + symbol
            some = max(f, np.int64(1))
            one = np.int64(1) << (32 + prob_bits[t])
            codes[i, 0], codes[i, 1] = (
                np.uint64((one + some - 1) // some),
                np.uint64(f << 32 | start),
            )
            packed = f << 20 | start << 8
            for byte in range(4):
                words[t, 4 * symbol + byte] = np.uint8(packed >> (8 * byte) & 255)
            if entries.shape[1] == 768:
                for byte in range(3):
                    entries[t, 256 * byte + symbol] = np.uint8(packed >> (8 * byte + 8) & 255)
            if f > most:
                most, padding[t] = f, symbol
            start += f


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
    n, prob_bits = len(tables), np.array([t.prob_bits for t in tables], np.int64)
    codes, words = np.empty((256 * n, 2), np.uint64), np.empty((n, 1024), np.uint8)
    entries = np.empty((n, 768), np.uint8) if BYTE_LOOKUP else words
    padding, freq = np.empty(n, np.int64), frequencies(tables)
    fill_entries(freq, prob_bits, codes, words, entries, padding)
    # by the fourth and the three other high bits of a symbol, and the low ones
    uncoded = np.packbits(freq.reshape(n, 2, 8, 16) == 0, axis=2, bitorder="little")
    return EncodingTables(codes, entries, prob_bits, padding, uncoded.reshape(n, 32)), words
