"""rANS as plain loops: for CPUs without the vectors of `rans_vectors`, and for what these cannot.

Spec: chapter 9. Loops for symbols under one table and under tables of classes (R9.12) differ in how
a table is looked up, and are made of the same source.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wcodec.backends.numba.arrays import copy, fill, padded
from wcodec.backends.numba.kernels import jit
from wcodec.reference.rans import GROUP, HEAD_NBYTES, LANES, STATE_LOW, STEPS


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _entry(lut: Any, slot: Any, first: Any, i: Any) -> Any:
    """Entry of a decoding table for symbol `i` of the group that starts at symbol `first`."""
    return lut[slot]


@jit
def _entry_of_class(lut: Any, slot: Any, first: Any, i: Any) -> Any:
    luts, parts, classes = lut
    return luts[np.uint64(parts[classes[first + i]]) + slot]


def _group_decoder(entry_of: Any) -> Any:
    def decode_group(
        words: Any, position: Any, states: Any, lut: Any, bits: Any, first: Any, out: Any
    ) -> Any:
        """Decode 128 symbols; `words` holds at least 128 from `position`. Returns the new one."""
        p = np.uint64(bits)
        mask, u16 = (np.uint64(1) << p) - np.uint64(1), np.uint64(16)
        for j in range(STEPS):
            for lane in range(LANES):
                x = np.uint64(states[lane])
                entry = np.uint64(entry_of(lut, x & mask, first, 4 * lane + j))
                bias = (entry >> np.uint64(8)) & np.uint64(4095)
                x = (entry >> np.uint64(20)) * (x >> p) + bias
                w = np.uint64(words[position])
                low = np.uint64(x < np.uint64(STATE_LOW))
                x = ((x << u16) | w) if low else x
                position += low
                states[lane] = np.uint32(x)
                out[4 * lane + j] = np.uint8(entry)
        return position

    return jit(decode_group)


def _decoder(entry_of: Any) -> Any:
    decode_group = _group_decoder(entry_of)

    def decode(stream: Any, n: Any, lut: Any, bits: Any, out: Any, streams: Any) -> Any:
        """Decode `n` symbols and the rest of the last group; returns whether the stream ends well.

        Where less than a group's most words are left, they are read from `tail`, with zeros after
        them: never past the end.
        """
        states, tail = streams.states[0], streams.tail
        copy(stream[:HEAD_NBYTES].view(np.uint32), states)
        words = stream[HEAD_NBYTES:].view(np.uint16)
        position: Any = 0
        n_words = words.size
        for first in range(0, n, GROUP):
            symbols, start = out[first : first + GROUP], np.uint64(first)
            if position + GROUP <= n_words:
                position = np.int64(
                    decode_group(words, np.uint64(position), states, lut, bits, start, symbols)
                )
            else:
                if position > n_words:
                    return False
                fill(tail, 0)
                copy(words[position:], tail)
                position += np.int64(
                    decode_group(tail, np.uint64(0), states, lut, bits, start, symbols)
                )
        good = position <= n_words and n_words - position < 8
        for lane in range(LANES):
            good &= states[lane] == STATE_LOW
        return good

    return jit(decode)


#: ``(stream, n, lut, bits, out, streams)``, with ``(luts, parts, classes)`` as `lut` for classes
decode, decode_with_classes = map(_decoder, (_entry, _entry_of_class))


# ---- encoding ----------------------------------------------------------------------------------
@jit
def finish(states: Any, n_words: Any, record: Any, at: Any) -> Any:
    """Put the states before a stream's words, and padding after them.

    Returns where the next part of the record starts.
    """
    copy(states, record[at : at + HEAD_NBYTES].view(np.uint32))
    end = at + HEAD_NBYTES + 2 * n_words
    fill(record[end : padded(end)], 0)
    return padded(end)


@jit
def _code(codes: Any, first: Any, i: Any, symbol: Any) -> Any:
    """What encodes symbol `i` of the group that starts at symbol `first`."""
    return codes[symbol, 0], codes[symbol, 1]


@jit
def _code_of_class(codes: Any, first: Any, i: Any, symbol: Any) -> Any:
    all_codes, parts, classes = codes
    row = np.uint64(parts[classes[first + i]]) + np.uint64(symbol)
    return all_codes[row, 0], all_codes[row, 1]


def _encoder(code_of: Any) -> Any:
    def encode(
        symbols: Any,
        n: Any,
        codes: Any,
        bits: Any,
        padding: Any,
        words: Any,
        record: Any,
        at: Any,
        streams: Any,
    ) -> Any:
        """Encode `n` symbols into a stream at ``record[at]``; returns where the next part starts.

        A symbol's code is a reciprocal, ``ceil(2 ** (32 + bits) / freq)``, and ``freq << 32 |
        start``. A state below ``freq << 32 - bits`` times the reciprocal's error is below
        ``2 ** (32 + bits)``, so the quotient is exact, and the product fits.
        """
        n_groups, states = (n + GROUP - 1) // GROUP, streams.states[0]
        fill(symbols[n : n_groups * GROUP], padding)
        fill(states, STATE_LOW)
        one, u16, u32 = np.uint64(1), np.uint64(16), np.uint64(32)
        p = np.uint64(bits)
        room_shift, divide = u32 - p, u32 + p
        end = np.uint64(n_groups * GROUP)
        position = end
        for g in range(n_groups - 1, -1, -1):
            group, first = symbols[g * GROUP : (g + 1) * GROUP], np.uint64(g * GROUP)
            for j in range(STEPS - 1, -1, -1):
                for i in range(LANES):  # lane 31 first: the decoder reads forward
                    lane = LANES - 1 - i
                    reciprocal, packed = code_of(codes, first, 4 * lane + j, group[4 * lane + j])
                    f, x = packed >> u32, np.uint64(states[lane])
                    words[position - one] = np.uint16(x)  # kept only if the position moves
                    over = np.uint64(x >= f << room_shift)
                    position -= over
                    x >>= over * u16
                    q = (x * reciprocal) >> divide
                    start = packed & np.uint64(0xFFFFFFFF)
                    states[lane] = np.uint32(x + q * ((one << p) - f) + start)
        n_words = np.int64(end - position)
        target = record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16)
        copy(words[np.int64(position) : np.int64(end)], target)
        return finish(states, n_words, record, at)

    return jit(encode)


#: for classes, `codes` are ``(codes, parts, classes)``
encode, encode_with_classes = map(_encoder, (_code, _code_of_class))
