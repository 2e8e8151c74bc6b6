"""rANS streams: vectors where the CPU has them, plain loops elsewhere. Spec: chapter 9.

Both write the same bytes and come to the same verdicts; `ir.VARIANT` chooses when this module is
imported. `encode_stream` and `decode_stream` are for symbols under one table, those ``by_class``
for symbols under the tables of their classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import numpy as np

from wcodec.backends.numba import rans_loops, rans_vectors
from wcodec.backends.numba.arrays import copy, fill
from wcodec.backends.numba.ir import VARIANT
from wcodec.backends.numba.kernels import (
    ArrayOf,
    Bytes2,
    Ints,
    Packed,
    UInts16,
    UInts32x2,
    call_native,
    jit,
)
from wcodec.backends.numba.rans_vectors import REVERSED, SLACK_NBYTES, TOGETHER
from wcodec.backends.numba.transforms import transformer
from wcodec.reference.prediction import MODES, PER_TILE
from wcodec.reference.rans import GROUP, HEAD_NBYTES, LANES, STATE_LOW
from wcodec.reference.transforms import Transform

VECTOR_BITS: Final = 11  #: the vector encoder's quotients need that many; see `rans_vectors`
ENCODING_ROWS: Final = 8  #: streams that are begun before any is ended: four planes of two segments
#: Row of a stream by itself. Those that are coded together are in the rows before.
ALONE: Final = max(ENCODING_ROWS, TOGETHER)
N_ROWS: Final = ALONE + 1

# Places in `Streams.natives`. From TRANSFORMS on come DCT, its inverse, ADST, its inverse.
(
    DECODE_1,
    DECODE_2,
    DECODE_TOGETHER,
    ENCODE_1,
    ENCODE_2,
    REVERSE,
    DECODE_CONTEXT_1,
    DECODE_CONTEXT_2,
    ENCODE_CONTEXT,
    MAP,
    TRANSFORMS,
) = range(11)


StreamRows = Annotated[Any, ArrayOf(rans_vectors.STREAM)]


class Streams(NamedTuple):
    """What coding streams needs besides their bytes and symbols, for one thread.

    Attributes
    ----------
    params
        Records of type `rans_vectors.STREAM`, one for each of `N_ROWS` streams.
    states
        uint32 of shape (N_ROWS, 32).
    spare
        uint8 of shape (TOGETHER + 1, n): copies of the words that are decoded, the last one of
        those of row `ALONE`.
    tail
        uint16: the last words of a stream that plain loops decode, with zeros after them.
    expansion, compression
        uint8: permutations of 8 elements that AVX2 and NEON need.
    natives
        int64: addresses of native functions, 0 for those that nothing has needed. That of
        `DECODE_TOGETHER` is 0 where two streams at a time are as fast.
    """

    params: StreamRows
    states: UInts32x2
    spare: Bytes2
    tail: UInts16
    expansion: Bytes2
    compression: Bytes2
    natives: Ints


# ---- decoding ----------------------------------------------------------------------------------
@jit
def code_groups(streams: Any, row: Any, n_groups: Any, native: Any, permutations: Any) -> None:
    """Decode or encode groups of the stream of a row, or of that and the next ones, as `native`
    does it; `permutations` are those that it needs.
    """
    if n_groups > 0:  # a row without groups may have no table
        records, states = streams.params[row:].ctypes.data, streams.states[row:].ctypes.data
        call_native(native, (records, states, permutations.ctypes.data, n_groups))


@jit
def begin_decoding(streams: Any, row: Any, readable: Any, nbytes: Any, lut: Any, bits: Any) -> None:
    """Fill in a row for a stream that vectors decode: the first `nbytes` of what can be read.

    Vectors reach beyond its end (`rans_vectors.SLACK_NBYTES`). Where fewer bytes follow, its words
    are read from a copy. What follows never matters: a stream that needs it is a bad one.
    """
    params, spare = streams.params[row], streams.spare[min(row, TOGETHER)]
    copy(readable[:HEAD_NBYTES].view(np.uint32), streams.states[row])
    words = readable[HEAD_NBYTES:nbytes]
    params.source, params.position, params.limit = words.ctypes.data, 0, words.size // 2 + 1
    if readable.size < nbytes + SLACK_NBYTES:
        copy(words, spare[: words.size])
        fill(spare[words.size : words.size + SLACK_NBYTES], 0)
        params.source = spare.ctypes.data
    params.table, params.bits = lut.ctypes.data, bits


@jit
def take_groups(streams: Any, first: Any, n: Any) -> Any:
    """The groups that each of `n` streams from a row on has left; they count as decoded."""
    all_have = streams.params[first].n_groups
    for row in range(first + 1, first + n):
        all_have = min(all_have, streams.params[row].n_groups)
    all_have = max(np.int64(0), all_have)
    for row in range(first, first + n):
        streams.params[row].n_groups -= all_have
    return all_have


@jit
def _decode_rows(streams: Any, n_rows: Any, n: Any, native: Any) -> None:
    if native == 0:
        return
    for first in range(0, n_rows - n + 1, n):
        n_groups = take_groups(streams, first, n)
        code_groups(streams, first, n_groups, native, streams.expansion)
        for row in range(first, first + n):
            streams.params[row].target += n_groups * GROUP


@jit
def decode_rows(streams: Any, n_rows: Any) -> None:
    """Decode all groups of the streams in the first rows, as many at a time as can be."""
    _decode_rows(streams, n_rows, TOGETHER, streams.natives[DECODE_TOGETHER])
    _decode_rows(streams, n_rows, 2, streams.natives[DECODE_2])
    _decode_rows(streams, n_rows, 1, streams.natives[DECODE_1])


@jit
def ended_well(streams: Any, row: Any) -> Any:
    """Whether a stream has ended as it must (R9.11)."""
    params, states = streams.params[row], streams.states[row]
    left = params.limit - 1 - params.position
    good = 0 <= left < 8
    for lane in range(LANES):
        good &= states[lane] == STATE_LOW
    return good


@jit
def _vector_decode(stream: Any, n: Any, lut: Any, bits: Any, out: Any, streams: Any) -> Any:
    begin_decoding(streams, ALONE, stream, stream.size, lut, bits)
    streams.params[ALONE].target = out.ctypes.data
    code_groups(
        streams, ALONE, (n + GROUP - 1) // GROUP, streams.natives[DECODE_1], streams.expansion
    )
    return ended_well(streams, ALONE)


@jit
def _vector_begin_by_class(
    streams: Any,
    row: Any,
    stream: Any,
    n: Any,
    luts: Any,
    maps: Any,
    m: Any,
    classes: Any,
    out: Any,
) -> None:
    begin_decoding(streams, row, stream, stream.size, luts, maps.prob_bits[m])
    params = streams.params[row]
    params.target, params.classes = out.ctypes.data, classes.ctypes.data
    params.parts = maps.parts[m].ctypes.data
    params.n_groups = (n + GROUP - 1) // GROUP


@jit
def _vector_decode_by_class(streams: Any) -> None:
    both = min(streams.params[0].n_groups, streams.params[1].n_groups)
    if both > 0:
        code_groups(streams, 0, both, streams.natives[DECODE_CONTEXT_2], streams.expansion)
    for row in range(2):
        params = streams.params[row]
        left = params.n_groups - both
        if left > 0:
            params.target += both * GROUP
            params.classes += both * GROUP
            code_groups(streams, row, left, streams.natives[DECODE_CONTEXT_1], streams.expansion)


@jit
def _plain_begin_by_class(
    streams: Any,
    row: Any,
    stream: Any,
    n: Any,
    luts: Any,
    maps: Any,
    m: Any,
    classes: Any,
    out: Any,
) -> None:
    """Decodes the stream at once; `limit` says whether it has ended well."""
    streams.params[row].n_groups = (n + GROUP - 1) // GROUP
    table = luts, maps.parts[m], classes
    streams.params[row].limit = rans_loops.decode_with_classes(
        stream, n, table, maps.prob_bits[m], out, streams
    )


@jit
def _plain_decode_by_class(streams: Any) -> None:
    pass


@jit
def _plain_ended_by_class(streams: Any, row: Any) -> Any:
    return streams.params[row].limit == 1


# ---- encoding ----------------------------------------------------------------------------------
@jit
def begin_encoding(
    streams: Any, row: Any, symbols: Any, n: Any, entries: Any, bits: Any, padding: Any, words: Any
) -> Any:
    """Fill in a row for a stream of `n` symbols that vectors encode."""
    params, n_groups = streams.params[row], (n + GROUP - 1) // GROUP
    params.n_groups = n_groups
    fill(symbols[n : n_groups * GROUP], padding)
    fill(streams.states[row], STATE_LOW)
    params.source, params.target, params.position = symbols.ctypes.data, words.ctypes.data, 0
    params.table, params.bits = entries.ctypes.data, bits


@jit
def end_encoding(streams: Any, row: Any, words: Any, record: Any, at: Any) -> Any:
    """Put an encoded stream, whose words come from the last to the first, into a record.

    Returns where the next part starts.
    """
    params = streams.params[row]
    n_words = params.position
    target = record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16)
    whole = n_words // REVERSED
    first = n_words - whole * REVERSED
    params.source, params.target = words[first:].ctypes.data, target.ctypes.data
    call_native(streams.natives[REVERSE], (streams.params[row:].ctypes.data, whole))
    for i in range(first):
        target[n_words - 1 - i] = words[i]
    return rans_loops.finish(streams.states[row], n_words, record, at)


@jit
def _plain_encode(
    symbols: Any, n: Any, tables: Any, t: Any, words: Any, record: Any, at: Any, streams: Any
) -> Any:
    bits, padding = tables.prob_bits[t], tables.padding[t]
    codes = tables.codes[256 * t : 256 * (t + 1)]
    return rans_loops.encode(symbols, n, codes, bits, padding, words, record, at, streams)


@jit
def _vector_encode(
    symbols: Any, n: Any, tables: Any, t: Any, words: Any, record: Any, at: Any, streams: Any
) -> Any:
    bits, padding = tables.prob_bits[t], tables.padding[t]
    if bits < VECTOR_BITS:
        return _plain_encode(symbols, n, tables, t, words, record, at, streams)
    begin_encoding(streams, ALONE, symbols, n, tables.entries[t], bits, padding, words)
    code_groups(
        streams,
        ALONE,
        streams.params[ALONE].n_groups,
        streams.natives[ENCODE_1],
        streams.compression,
    )
    return end_encoding(streams, ALONE, words, record, at)


@jit
def _plain_encode_by_class(
    symbols: Any,
    n: Any,
    tables: Any,
    maps: Any,
    m: Any,
    classes: Any,
    words: Any,
    record: Any,
    at: Any,
    streams: Any,
) -> Any:
    codes, bits, padding = tables.codes, maps.prob_bits[m], maps.padding[m]
    return rans_loops.encode_with_classes(
        symbols, n, (codes, maps.parts[m], classes), bits, padding, words, record, at, streams
    )


@jit
def _vector_encode_by_class(
    symbols: Any,
    n: Any,
    tables: Any,
    maps: Any,
    m: Any,
    classes: Any,
    words: Any,
    record: Any,
    at: Any,
    streams: Any,
) -> Any:
    bits, padding = maps.prob_bits[m], maps.padding[m]
    if bits < VECTOR_BITS:
        return _plain_encode_by_class(
            symbols, n, tables, maps, m, classes, words, record, at, streams
        )
    begin_encoding(streams, ALONE, symbols, n, tables.entries, bits, padding, words)
    params = streams.params[ALONE]
    params.classes, params.parts = classes.ctypes.data, maps.parts[m].ctypes.data
    code_groups(
        streams, ALONE, params.n_groups, streams.natives[ENCODE_CONTEXT], streams.compression
    )
    return end_encoding(streams, ALONE, words, record, at)


# ---- the ones to use ---------------------------------------------------------------------------
_PLAIN: Final = VARIANT == "plain"
#: ``(stream, n, lut, bits, out, streams)``: decode `n` symbols and the rest of the last group into
#: `out`; returns whether the stream ends as it must. Reads nothing but the stream.
decode_stream: Final = rans_loops.decode if _PLAIN else _vector_decode
#: ``(symbols, n, tables, t, words, record, at, streams)``: encode `n` symbols by table `t` into a
#: stream at ``record[at]``; returns where the next part starts. `symbols` has room for whole
#: groups, `words` for a word each and 16 more.
encode_stream: Final = _plain_encode if _PLAIN else _vector_encode
# One stream or two by class are begun in rows 0 and 1, decoded, and have ended well or not.
#: ``(streams, row, stream, n, luts, maps, m, classes, out)``: `m` is the number of a context map.
#: `classes`, of each symbol, are below 16, and 0 in the rest of the last group.
begin_by_class: Final = _plain_begin_by_class if _PLAIN else _vector_begin_by_class
#: ``(streams)``: decode the streams of these rows, which have no groups if they are not begun.
decode_by_class: Final = _plain_decode_by_class if _PLAIN else _vector_decode_by_class
#: ``(streams, row)``: whether a stream has ended as it must.
ended_by_class: Final = _plain_ended_by_class if _PLAIN else ended_well
#: ``(symbols, n, tables, maps, m, classes, words, record, at, streams)``: as `encode_stream`; the
#: entries of `tables` are words in any case.
encode_by_class: Final = _plain_encode_by_class if _PLAIN else _vector_encode_by_class


# ---- memory ------------------------------------------------------------------------------------
class StreamScratch:
    """Memory and native functions for the streams of one thread.

    Parameters
    ----------
    gather
        Whether decoders look entries up by the gather instruction.
    """

    def __init__(self, gather: bool = False) -> None:
        self._gather = gather
        self.params = np.zeros(N_ROWS, rans_vectors.STREAM)
        self.states = np.zeros((N_ROWS, LANES), np.uint32)
        self.spare = np.zeros((TOGETHER + 1, SLACK_NBYTES), np.uint8)
        self.tail = np.zeros(2 * GROUP, np.uint16)
        self.natives = np.zeros(TRANSFORMS + 4, np.int64)
        self._packed: Packed | None = None
        if not _PLAIN:
            self.natives[: REVERSE + 1] = (
                *(rans_vectors.decoder(n, False, gather).address for n in (1, 2)),
                rans_vectors.decoder(TOGETHER, False, gather).address if gather else 0,
                rans_vectors.encoder(1).address,
                rans_vectors.encoder(2).address,
                rans_vectors.reverser().address,
            )

    def need_contexts(self) -> None:
        """Compile what codes streams whose symbols have classes."""
        if not _PLAIN:
            self.natives[DECODE_CONTEXT_1:TRANSFORMS] = (
                *(rans_vectors.decoder(n, True, self._gather).address for n in (1, 2)),
                rans_vectors.encoder(1, True).address,
                mapper.address if (mapper := rans_vectors.mapper()) else 0,
            )

    def need_transforms(self, modes: set[int]) -> None:
        """Compile the transforms of some modes."""
        used = {Transform(m >> 4) for m in ({*MODES} if PER_TILE in modes else modes)}
        for transform in used - {Transform.NONE}:
            at = TRANSFORMS + 2 * (transform - 1)
            self.natives[at : at + 2] = [
                transformer(transform, inverse).address for inverse in (False, True)
            ]

    def grow(self, stream_nbytes: int) -> None:
        """Make room for copies of streams of that many bytes."""
        if self.spare.shape[1] < stream_nbytes + SLACK_NBYTES:
            self.spare = np.zeros((TOGETHER + 1, stream_nbytes + SLACK_NBYTES), np.uint8)
            self._packed = None

    def packed(self) -> Packed:
        """`Streams`."""
        if self._packed is None:
            states, spare, tail = self.states, self.spare, self.tail
            all_of_it = self.params, states, spare, tail, EXPANSION, COMPRESSION, self.natives
            self._packed = Packed(Streams(*all_of_it))
        return self._packed


def _permutations() -> tuple[Any, Any]:
    """For each of 256 masks of 8 elements: where `expand` takes each from, which `compress` keeps.

    uint8 of shape (256, 8), or (256, 16) for NEON, which moves each of two bytes.
    """
    expansion, compression = np.zeros((256, 8), np.uint8), np.zeros((256, 8), np.uint8)
    for mask in range(256):
        kept = [i for i in range(8) if mask >> i & 1]
        compression[mask, : len(kept)] = kept
        expansion[mask, kept] = range(len(kept))
    if VARIANT == "neon":
        two = np.arange(2, dtype=np.uint8)
        expansion, compression = (
            (2 * t[..., None] + two).reshape(256, 16) for t in (expansion, compression)
        )
    return expansion, compression


EXPANSION, COMPRESSION = _permutations()
