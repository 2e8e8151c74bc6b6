"""One rANS stream at a time: vector kernels where the CPU has them, plain loops elsewhere. Same bytes, same verdicts.

`decode_stream` and `encode_stream` are the ones to use; `numba_ir.VARIANT` has chosen them when this module is imported.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends import numba_vector as v
from wcodec.backends.numba_ir import VARIANT
from wcodec.backends.numba_jit import call_2, call_4, jit

LANES, GROUP, HEAD_NBYTES, STATE_LOW = 32, 128, 128, 1 << 16
VECTOR_BITS: Final = 11  #: the vector encoder's quotients need that many; see `numba_vector`
SPARE_NBYTES: Final = v.SLACK_NBYTES
N_STREAMS: Final = 3  #: rows of `params` and `states`: two fused streams, and one by itself


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


# ---- native functions ----------------------------------------------------------------------------------------------------
DECODE_1, DECODE_2, ENCODE_1, ENCODE_2, REVERSE = range(5)  # places in `Work.natives`


@jit
def decode_groups(work: Any, row: Any, n_groups: Any, function: Any) -> None:
    """Decode `n_groups` groups of the stream of a row of parameters, or of that and the next one; `function` is a native one."""
    call_4(function, work[0][row:].ctypes.data, work[1][row:].ctypes.data, work[4].ctypes.data, n_groups)


@jit
def encode_groups(work: Any, row: Any, n_groups: Any, function: Any) -> None:
    """Encode groups, as `decode_groups`."""
    call_4(function, work[0][row:].ctypes.data, work[1][row:].ctypes.data, work[5].ctypes.data, n_groups)


# ---- decoding --------------------------------------------------------------------------------------------------------
@jit
def begin(work: Any, row: Any, payload: Any, at: Any, nbytes: Any, lut: Any, bits: Any) -> None:
    """Fill in row `row` of the vector kernels' parameters for a stream.

    Its words are read from a copy with zeros behind it, for vectors reach beyond the end (`numba_vector.SLACK_NBYTES`).
    """
    params, states, spare = work[0][row], work[1][row], work[2][row]
    copy(payload[at : at + HEAD_NBYTES].view(np.uint32), states)
    words = payload[at + HEAD_NBYTES : at + nbytes]
    copy(words, spare[: words.size])
    fill(spare[words.size : words.size + SPARE_NBYTES], 0)
    params[v.SOURCE] = spare.ctypes.data
    params[v.POSITION], params[v.LIMIT] = 0, words.size // 2 + 1
    params[v.TABLE], params[v.BITS] = lut.ctypes.data, bits


@jit
def ended(work: Any, row: Any) -> Any:
    """Whether a stream has ended as it must (R9.11)."""
    params, states = work[0][row], work[1][row]
    left = params[v.LIMIT] - 1 - params[v.POSITION]
    good = 0 <= left < 8
    for lane in range(LANES):
        good &= states[lane] == STATE_LOW
    return good


@jit
def _vector_decode(payload: Any, at: Any, nbytes: Any, n: Any, lut: Any, bits: Any, out: Any, work: Any) -> Any:
    begin(work, 2, payload, at, nbytes, lut, bits)
    work[0][2, v.TARGET] = out.ctypes.data
    decode_groups(work, 2, (n + GROUP - 1) // GROUP, work[6][DECODE_1])
    return ended(work, 2)


@jit
def _decode_group(words: Any, position: Any, states: Any, lut: Any, bits: Any, out: Any) -> Any:
    """Decode 128 symbols; `words` holds at least 128 from `position`."""
    p = np.uint64(bits)
    mask, u16 = (np.uint64(1) << p) - np.uint64(1), np.uint64(16)
    for j in range(4):
        for lane in range(LANES):
            x = np.uint64(states[lane])
            entry = np.uint64(lut[x & mask])
            x = (entry >> np.uint64(20)) * (x >> p) + ((entry >> np.uint64(8)) & np.uint64(4095))
            w = np.uint64(words[position])
            low = np.uint64(x < np.uint64(STATE_LOW))
            x = ((x << u16) | w) if low else x
            position += low
            states[lane] = np.uint32(x)
            out[4 * lane + j] = np.uint8(entry)
    return position


@jit
def _plain_decode(payload: Any, at: Any, nbytes: Any, n: Any, lut: Any, bits: Any, out: Any, work: Any) -> Any:
    """Where less than a group's most words are left, they are read from `tail`, with zeros behind them: never past the end."""
    states, tail, stream = work[1][0], work[3], payload[at : at + nbytes]
    copy(stream[:HEAD_NBYTES].view(np.uint32), states)
    words = stream[HEAD_NBYTES:].view(np.uint16)
    position: Any = 0
    n_words = words.size
    for g in range((n + GROUP - 1) // GROUP):
        symbols = out[g * GROUP : (g + 1) * GROUP]
        if position + GROUP <= n_words:
            position = np.int64(_decode_group(words, np.uint64(position), states, lut, bits, symbols))
        else:
            if position > n_words:
                return False
            fill(tail, 0)
            copy(words[position:], tail)
            position += np.int64(_decode_group(tail, np.uint64(0), states, lut, bits, symbols))
    good = position <= n_words and n_words - position < 8
    for lane in range(LANES):
        good &= states[lane] == STATE_LOW
    return good


# ---- encoding --------------------------------------------------------------------------------------------------------
@jit
def _finish(states: Any, n_words: Any, record: Any, at: Any) -> Any:
    """Put the states before a stream's words, and padding behind them; returns where the next part starts."""
    copy(states, record[at : at + HEAD_NBYTES].view(np.uint32))
    behind = at + HEAD_NBYTES + 2 * n_words
    fill(record[behind : padded(behind)], 0)
    return padded(behind)


@jit
def _plain_encode(
    symbols: Any, n: Any, coding: Any, entries: Any, bits: Any, padding: Any, words: Any, record: Any, at: Any, work: Any
) -> Any:
    """``coding[s]`` is the reciprocal ``ceil(2 ** (32 + bits) / freq)`` and ``freq << 32 | start``.

    A state below ``freq << 32 - bits`` times the reciprocal's error is below ``2 ** (32 + bits)``, so the quotient is
    exact, and the product fits.
    """
    n_groups, states = (n + GROUP - 1) // GROUP, work[1][0]
    fill(symbols[n : n_groups * GROUP], padding)
    fill(states, STATE_LOW)
    one, u16, u32 = np.uint64(1), np.uint64(16), np.uint64(32)
    p = np.uint64(bits)
    room_shift, divide = u32 - p, u32 + p
    end = np.uint64(n_groups * GROUP)
    position = end
    for g in range(n_groups - 1, -1, -1):
        group = symbols[g * GROUP : (g + 1) * GROUP]
        for j in range(3, -1, -1):
            for i in range(LANES):  # lane 31 first: the decoder reads forward
                lane = LANES - 1 - i
                s = group[4 * lane + j]
                reciprocal, packed = coding[s, 0], coding[s, 1]
                f, x = packed >> u32, np.uint64(states[lane])
                words[position - one] = np.uint16(x)  # kept only if the position moves
                over = np.uint64(x >= f << room_shift)
                position -= over
                x >>= over * u16
                q = (x * reciprocal) >> divide
                states[lane] = np.uint32(x + q * ((one << p) - f) + (packed & np.uint64(0xFFFFFFFF)))
    n_words = np.int64(end - position)
    copy(words[np.int64(position) : np.int64(end)], record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16))
    return _finish(states, n_words, record, at)


@jit
def begin_encoding(work: Any, row: Any, symbols: Any, n: Any, entries: Any, bits: Any, padding: Any, words: Any) -> Any:
    """Fill in row `row` of the vector kernels' parameters for a stream of `n` symbols. Returns its groups."""
    params, n_groups = work[0][row], (n + GROUP - 1) // GROUP
    fill(symbols[n : n_groups * GROUP], padding)
    fill(work[1][row], STATE_LOW)
    params[v.SYMBOLS], params[v.WORDS], params[v.POSITION] = symbols.ctypes.data, words.ctypes.data, 0
    params[v.TABLE], params[v.BITS] = entries.ctypes.data, bits
    return n_groups


@jit
def end_encoding(work: Any, row: Any, words: Any, record: Any, at: Any) -> Any:
    """Put an encoded stream, whose words come from the last to the first, into a record; returns where the next part starts."""
    n_words = work[0][row, v.POSITION]
    target = record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16)
    whole = n_words // v.REVERSED
    first = n_words - whole * v.REVERSED
    params = work[0][row]
    params[v.SOURCE], params[v.TARGET] = words[first:].ctypes.data, target.ctypes.data
    call_2(work[6][REVERSE], params.ctypes.data, whole)
    for i in range(first):
        target[n_words - 1 - i] = words[i]
    return _finish(work[1][row], n_words, record, at)


@jit
def _vector_encode(
    symbols: Any, n: Any, coding: Any, entries: Any, bits: Any, padding: Any, words: Any, record: Any, at: Any, work: Any
) -> Any:
    if bits < VECTOR_BITS:
        return _plain_encode(symbols, n, coding, entries, bits, padding, words, record, at, work)
    n_groups = begin_encoding(work, 2, symbols, n, entries, bits, padding, words)
    encode_groups(work, 2, n_groups, work[6][ENCODE_1])
    return end_encoding(work, 2, words, record, at)


#: ``(payload, at, nbytes, n, lut, bits, out, work)``: decode `n` symbols and the rest of the last group into `out`; returns whether the
#: stream, ``payload[at : at + nbytes]``, ends as it must. Never reads beyond the payload.
decode_stream: Final = _plain_decode if VARIANT == "plain" else _vector_decode
#: ``(symbols, n, coding, entries, bits, padding, words, record, at, work)``: encode `n` symbols into a stream at ``record[at]``;
#: returns where the next part starts. `symbols` has room for whole groups, `words` for a word each and 16 more.
encode_stream: Final = _plain_encode if VARIANT == "plain" else _vector_encode


class Work:
    """What the streams of one thread need: parameters, states, spare copies, permutations."""

    def __init__(self) -> None:
        self.params = np.zeros((N_STREAMS, v.N_PARAMS), np.int64)
        self.states = np.zeros((N_STREAMS, LANES), np.uint32)
        self.spare = np.zeros((N_STREAMS, SPARE_NBYTES), np.uint8)
        self.tail = np.zeros(2 * GROUP, np.uint16)
        self.natives = np.zeros(5, np.int64)
        if VARIANT != "plain":
            self.natives[:] = v.decoder(1), v.decoder(2), v.encoder(1), v.encoder(2), v.reverser()

    def grow(self, stream_nbytes: int) -> None:
        """Make room for copies of streams of that many bytes."""
        if self.spare.shape[1] < stream_nbytes + SPARE_NBYTES:
            self.spare = np.zeros((N_STREAMS, stream_nbytes + SPARE_NBYTES), np.uint8)

    def arrays(self) -> tuple[Any, ...]:
        """As the kernels take them."""
        return self.params, self.states, self.spare, self.tail, EXPANSION, COMPRESSION, self.natives


def _permutations() -> tuple[Any, Any]:
    """For each of 256 masks of 8 elements: where `expand` takes each element from, and which elements `compress` keeps."""
    expansion, compression = np.zeros((256, 8), np.uint8), np.zeros((256, 8), np.uint8)
    for mask in range(256):
        kept = [i for i in range(8) if mask >> i & 1]
        compression[mask, : len(kept)] = kept
        expansion[mask, kept] = range(len(kept))
    return expansion, compression


EXPANSION, COMPRESSION = _permutations()
