"""One rANS stream at a time: vector kernels where the CPU has them, plain loops elsewhere.

Same bytes, same verdicts.

`decode_stream` and `encode_stream` are the ones to use, and those ``by_class`` for streams whose
symbols have classes; `ir.VARIANT` has chosen them when this module is imported.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba import rans_vectors as v
from wcodec.backends.numba.compiling import call_2, call_4, jit
from wcodec.backends.numba.ir import VARIANT
from wcodec.backends.numba.transforms import transformer
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.transforms import Transform

LANES, GROUP, HEAD_NBYTES, STATE_LOW = 32, 128, 128, 1 << 16
VECTOR_BITS: Final = 11  #: the vector encoder's quotients need that many; see `rans_vectors`
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


# ---- native functions --------------------------------------------------------------------------
# Places in `Work.natives`. Behind TRANSFORMS come DCT, its inverse, ADST, its inverse.
(
    DECODE_1,
    DECODE_2,
    ENCODE_1,
    ENCODE_2,
    REVERSE,
    DECODE_CONTEXT_1,
    DECODE_CONTEXT_2,
    ENCODE_CONTEXT,
    MAP,
    TRANSFORMS,
) = range(10)


@jit
def decode_groups(work: Any, row: Any, n_groups: Any, function: Any) -> None:
    """Decode `n_groups` groups of the stream of a row of parameters, or of that and the next one;
    `function` is a native one.
    """
    call_4(
        function,
        work[0][row:].ctypes.data,
        work[1][row:].ctypes.data,
        work[4].ctypes.data,
        n_groups,
    )


@jit
def encode_groups(work: Any, row: Any, n_groups: Any, function: Any) -> None:
    """Encode groups, as `decode_groups`."""
    call_4(
        function,
        work[0][row:].ctypes.data,
        work[1][row:].ctypes.data,
        work[5].ctypes.data,
        n_groups,
    )


# ---- decoding ----------------------------------------------------------------------------------
@jit
def begin(work: Any, row: Any, payload: Any, at: Any, nbytes: Any, lut: Any, bits: Any) -> None:
    """Fill in row `row` of the vector kernels' parameters for a stream.

    Its words are read from a copy with zeros behind it, for vectors reach beyond the end
    (`rans_vectors.SLACK_NBYTES`).
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
def _vector_decode(
    payload: Any, at: Any, nbytes: Any, n: Any, lut: Any, bits: Any, out: Any, work: Any
) -> Any:
    begin(work, 2, payload, at, nbytes, lut, bits)
    work[0][2, v.TARGET] = out.ctypes.data
    decode_groups(work, 2, (n + GROUP - 1) // GROUP, work[6][DECODE_1])
    return ended(work, 2)


@jit
def _vector_begin_by_class(
    work: Any,
    row: Any,
    payload: Any,
    at: Any,
    nbytes: Any,
    n: Any,
    luts: Any,
    parts: Any,
    classes: Any,
    bits: Any,
    out: Any,
) -> None:
    begin(work, row, payload, at, nbytes, luts, bits)
    params = work[0][row]
    params[v.TARGET], params[v.CLASSES], params[v.PARTS] = (
        out.ctypes.data,
        classes.ctypes.data,
        parts.ctypes.data,
    )


@jit
def _vector_decode_by_class(work: Any, n: Any, other: Any) -> None:
    params, groups, others = work[0], (n + GROUP - 1) // GROUP, (other + GROUP - 1) // GROUP
    both = min(groups, others)
    if both > 0:
        decode_groups(work, 0, both, work[6][DECODE_CONTEXT_2])
    for row in range(2):
        left = (groups if row == 0 else others) - both
        if left > 0:
            params[row, v.TARGET] += both * GROUP
            params[row, v.CLASSES] += both * GROUP
            decode_groups(work, row, left, work[6][DECODE_CONTEXT_1])


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
        """Decode 128 symbols; `words` holds at least 128 from `position`."""
        p = np.uint64(bits)
        mask, u16 = (np.uint64(1) << p) - np.uint64(1), np.uint64(16)
        for j in range(4):
            for lane in range(LANES):
                x = np.uint64(states[lane])
                entry = np.uint64(entry_of(lut, x & mask, first, 4 * lane + j))
                x = (entry >> np.uint64(20)) * (x >> p) + (
                    (entry >> np.uint64(8)) & np.uint64(4095)
                )
                w = np.uint64(words[position])
                low = np.uint64(x < np.uint64(STATE_LOW))
                x = ((x << u16) | w) if low else x
                position += low
                states[lane] = np.uint32(x)
                out[4 * lane + j] = np.uint8(entry)
        return position

    return jit(decode_group)


def _plain_decoder(entry_of: Any) -> Any:
    decode_group = _group_decoder(entry_of)

    def decode(
        payload: Any, at: Any, nbytes: Any, n: Any, lut: Any, bits: Any, out: Any, work: Any
    ) -> Any:
        """Where less than a group's most words are left, they are read from `tail`, with zeros
        behind them: never past the end.
        """
        states, tail, stream = work[1][0], work[3], payload[at : at + nbytes]
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


_plain_decode, _decode_with_classes = (
    _plain_decoder(entry_of) for entry_of in (_entry, _entry_of_class)
)


@jit
def _plain_begin_by_class(
    work: Any,
    row: Any,
    payload: Any,
    at: Any,
    nbytes: Any,
    n: Any,
    luts: Any,
    parts: Any,
    classes: Any,
    bits: Any,
    out: Any,
) -> None:
    """Decodes the stream at once."""
    work[0][row, v.LIMIT] = _decode_with_classes(
        payload, at, nbytes, n, (luts.reshape(-1), parts, classes), bits, out, work
    )


@jit
def _plain_decode_by_class(work: Any, n: Any, other: Any) -> None:
    pass


@jit
def _plain_ended_by_class(work: Any, row: Any) -> Any:
    return work[0][row, v.LIMIT] == 1


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _finish(states: Any, n_words: Any, record: Any, at: Any) -> Any:
    """Put the states before a stream's words, and padding behind them; returns where the next part
    starts.
    """
    copy(states, record[at : at + HEAD_NBYTES].view(np.uint32))
    behind = at + HEAD_NBYTES + 2 * n_words
    fill(record[behind : padded(behind)], 0)
    return padded(behind)


@jit
def _code(coding: Any, first: Any, i: Any, symbol: Any) -> Any:
    """What encodes symbol `i` of the group that starts at symbol `first`."""
    return coding[symbol, 0], coding[symbol, 1]


@jit
def _code_of_class(coding: Any, first: Any, i: Any, symbol: Any) -> Any:
    codes, parts, classes = coding
    row = np.uint64(parts[classes[first + i]]) + np.uint64(symbol)
    return codes[row, 0], codes[row, 1]


def _plain_encoder(code_of: Any) -> Any:
    def encode(
        symbols: Any,
        n: Any,
        coding: Any,
        bits: Any,
        padding: Any,
        words: Any,
        record: Any,
        at: Any,
        work: Any,
    ) -> Any:
        """A symbol's code is the reciprocal ``ceil(2 ** (32 + bits) / freq)`` and ``freq << 32 |
        start``.

        A state below ``freq << 32 - bits`` times the reciprocal's error is below ``2 ** (32 +
        bits)``, so the quotient is exact, and the product fits.
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
            group, first = symbols[g * GROUP : (g + 1) * GROUP], np.uint64(g * GROUP)
            for j in range(3, -1, -1):
                for i in range(LANES):  # lane 31 first: the decoder reads forward
                    lane = LANES - 1 - i
                    reciprocal, packed = code_of(coding, first, 4 * lane + j, group[4 * lane + j])
                    f, x = packed >> u32, np.uint64(states[lane])
                    words[position - one] = np.uint16(x)  # kept only if the position moves
                    over = np.uint64(x >= f << room_shift)
                    position -= over
                    x >>= over * u16
                    q = (x * reciprocal) >> divide
                    states[lane] = np.uint32(
                        x + q * ((one << p) - f) + (packed & np.uint64(0xFFFFFFFF))
                    )
        n_words = np.int64(end - position)
        copy(
            words[np.int64(position) : np.int64(end)],
            record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16),
        )
        return _finish(states, n_words, record, at)

    return jit(encode)


_encode, _encode_with_classes = (_plain_encoder(code_of) for code_of in (_code, _code_of_class))


@jit
def _plain_encode(
    symbols: Any,
    n: Any,
    coding: Any,
    entries: Any,
    bits: Any,
    padding: Any,
    words: Any,
    record: Any,
    at: Any,
    work: Any,
) -> Any:
    return _encode(symbols, n, coding, bits, padding, words, record, at, work)


@jit
def _plain_encode_by_class(
    symbols: Any,
    n: Any,
    coding: Any,
    entries: Any,
    parts: Any,
    classes: Any,
    bits: Any,
    padding: Any,
    words: Any,
    record: Any,
    at: Any,
    work: Any,
) -> Any:
    return _encode_with_classes(
        symbols, n, (coding.reshape(-1, 2), parts, classes), bits, padding, words, record, at, work
    )


@jit
def begin_encoding(
    work: Any, row: Any, symbols: Any, n: Any, entries: Any, bits: Any, padding: Any, words: Any
) -> Any:
    """Fill in row `row` of the vector kernels' parameters for a stream of `n` symbols.

    Returns its groups.
    """
    params, n_groups = work[0][row], (n + GROUP - 1) // GROUP
    fill(symbols[n : n_groups * GROUP], padding)
    fill(work[1][row], STATE_LOW)
    params[v.SYMBOLS], params[v.WORDS], params[v.POSITION] = (
        symbols.ctypes.data,
        words.ctypes.data,
        0,
    )
    params[v.TABLE], params[v.BITS] = entries.ctypes.data, bits
    return n_groups


@jit
def end_encoding(work: Any, row: Any, words: Any, record: Any, at: Any) -> Any:
    """Put an encoded stream, whose words come from the last to the first, into a record; returns
    where the next part starts.
    """
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
    symbols: Any,
    n: Any,
    coding: Any,
    entries: Any,
    bits: Any,
    padding: Any,
    words: Any,
    record: Any,
    at: Any,
    work: Any,
) -> Any:
    if bits < VECTOR_BITS:
        return _plain_encode(symbols, n, coding, entries, bits, padding, words, record, at, work)
    n_groups = begin_encoding(work, 2, symbols, n, entries, bits, padding, words)
    encode_groups(work, 2, n_groups, work[6][ENCODE_1])
    return end_encoding(work, 2, words, record, at)


@jit
def _vector_encode_by_class(
    symbols: Any,
    n: Any,
    coding: Any,
    entries: Any,
    parts: Any,
    classes: Any,
    bits: Any,
    padding: Any,
    words: Any,
    record: Any,
    at: Any,
    work: Any,
) -> Any:
    if bits < VECTOR_BITS:
        return _plain_encode_by_class(
            symbols, n, coding, entries, parts, classes, bits, padding, words, record, at, work
        )
    n_groups = begin_encoding(work, 2, symbols, n, entries, bits, padding, words)
    work[0][2, v.CLASSES], work[0][2, v.PARTS] = classes.ctypes.data, parts.ctypes.data
    encode_groups(work, 2, n_groups, work[6][ENCODE_CONTEXT])
    return end_encoding(work, 2, words, record, at)


#: ``(payload, at, nbytes, n, lut, bits, out, work)``: decode `n` symbols and the rest of the last
#: group into `out`; returns whether the stream, ``payload[at : at + nbytes]``, ends as it must.
#: Never reads beyond the payload.
decode_stream: Final = _plain_decode if VARIANT == "plain" else _vector_decode
#: ``(symbols, n, coding, entries, bits, padding, words, record, at, work)``: encode `n` symbols
#: into a stream at ``record[at]``; returns where the next part starts. `symbols` has room for whole
#: groups, `words` for a word each and 16 more.
encode_stream: Final = _plain_encode if VARIANT == "plain" else _vector_encode
# Symbols under the tables of their classes: one stream or two are begun in rows 0 and 1, decoded,
# and have ended well or not.
#: ``(work, row, payload, at, nbytes, n, luts, parts, classes, bits, out)``: otherwise as for
#: `decode_stream`. ``parts[c]``, uint32, is where class `c` begins in `luts`; `classes` are below
#: 16, and 0 in the rest of the last group.
begin_by_class: Final = _plain_begin_by_class if VARIANT == "plain" else _vector_begin_by_class
#: ``(work, n, other)``: decode the streams of these numbers of symbols, 0 for none.
decode_by_class: Final = _plain_decode_by_class if VARIANT == "plain" else _vector_decode_by_class
#: ``(work, row)``: whether a stream has ended as it must.
ended_by_class: Final = _plain_ended_by_class if VARIANT == "plain" else ended
#: ``(symbols, n, coding, entries, parts, classes, bits, padding, words, record, at, work)``: as
#: `encode_stream`, likewise; `entries` are words in any case.
encode_by_class: Final = _plain_encode_by_class if VARIANT == "plain" else _vector_encode_by_class


class Work:
    """What the streams of one thread need: parameters, states, spare copies, permutations."""

    def __init__(self) -> None:
        self.params = np.zeros((N_STREAMS, v.N_PARAMS), np.int64)
        self.states = np.zeros((N_STREAMS, LANES), np.uint32)
        self.spare = np.zeros((N_STREAMS, SPARE_NBYTES), np.uint8)
        self.tail = np.zeros(2 * GROUP, np.uint16)
        self.natives = np.zeros(TRANSFORMS + 4, np.int64)
        if VARIANT != "plain":
            self.natives[: REVERSE + 1] = (
                v.decoder(1),
                v.decoder(2),
                v.encoder(1),
                v.encoder(2),
                v.reverser(),
            )

    def need_contexts(self) -> None:
        """Compile what codes streams whose symbols have classes."""
        if VARIANT != "plain":
            self.natives[DECODE_CONTEXT_1:TRANSFORMS] = (
                v.decoder(1, True),
                v.decoder(2, True),
                v.encoder(1, True),
                v.mapper(),
            )

    def need_transforms(self, modes: set[int]) -> None:
        """Compile the transforms of some modes."""
        for transform in {Transform(m >> 4) for m in ({*MODES} if PER_TILE in modes else modes)} - {
            Transform.NONE
        }:
            at = TRANSFORMS + 2 * (transform - 1)
            self.natives[at : at + 2] = [
                transformer(transform, inverse) for inverse in (False, True)
            ]

    def grow(self, stream_nbytes: int) -> None:
        """Make room for copies of streams of that many bytes."""
        if self.spare.shape[1] < stream_nbytes + SPARE_NBYTES:
            self.spare = np.zeros((N_STREAMS, stream_nbytes + SPARE_NBYTES), np.uint8)

    def arrays(self) -> tuple[Any, ...]:
        """As the kernels take them."""
        return self.params, self.states, self.spare, self.tail, EXPANSION, COMPRESSION, self.natives


def _permutations() -> tuple[Any, Any]:
    """For each of 256 masks of 8 elements: where `expand` takes each element from, and which
    elements `compress` keeps.
    """
    expansion, compression = np.zeros((256, 8), np.uint8), np.zeros((256, 8), np.uint8)
    for mask in range(256):
        kept = [i for i in range(8) if mask >> i & 1]
        compression[mask, : len(kept)] = kept
        expansion[mask, kept] = range(len(kept))
    return expansion, compression


EXPANSION, COMPRESSION = _permutations()
