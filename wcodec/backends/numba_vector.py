"""rANS as vectors: the inner loops of the numba backend on CPUs with AVX-512 or AVX2.

A kernel works on one stream, or on two at once so that one's latency hides behind the other's. What it has to know of a
stream stands in a row of `params`, addresses included; it trusts that row, and distrusts what the addresses hold:
the position in the words is cut to `LIMIT` after each group, so it reads at most 288 bytes beyond that (`SLACK_NBYTES`),
which the caller has there.

In registers, a vector holds the states of 8 or 16 neighbouring lanes. Four symbols of each make a vector of bytes in order.
"""

from __future__ import annotations

from typing import Any, Final

from wcodec.backends import numba_ir as ir
from wcodec.backends.numba_ir import F32, I8, I16, I32, I64, WIDTH, splat, vector
from wcodec.backends.numba_jit import native

LANES, STEPS, GROUP = 32, 4, 128
VECTORS: Final = LANES // WIDTH
SLACK_NBYTES: Final = 2 * (GROUP + WIDTH)

# Columns of `params`, all int64. Decoding: where the words are, the word to read next, the position that is too far, the
# table, its bits, where symbols go.
SOURCE, POSITION, LIMIT, TABLE, BITS, TARGET = range(6)
# Encoding: the symbols; where words go, the last one of the stream first. POSITION, TABLE and BITS as above.
SYMBOLS, WORDS = SOURCE, TARGET
N_PARAMS: Final = 8
REVERSED: Final = 2 * WIDTH  #: words of a vector of `reverser`

#: Kinds of words that are split and merged as vectors: nibble pairs or bytes, bytes of a word, map.
KINDS: Final = (
    (False, 1, "identity"), (False, 1, "offset"), (False, 1, "exponent 4"), (False, 1, "exponent 5"),
    (True, 1, "identity"), (True, 1, "offset"), (True, 1, "exponent 4"), (True, 1, "exponent 5"),
    (False, 2, "identity"), (False, 2, "offset"), (False, 2, "exponent 8"), (True, 2, "exponent 8"),
    (False, 4, "identity"), (False, 4, "offset"), (False, 4, "exponent 8"), (True, 4, "exponent 8"),
)  # fmt: skip


def _decode(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any, n_streams: int) -> None:
    """The decoder's loop: chapter 9.2 of the spec, 8 or 16 lanes at a time."""

    def param(s: int, column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(s * N_PARAMS + column)), I64)

    streams, n_states, of = range(n_streams), n_streams * VECTORS, vector(I32, WIDTH)
    source, table = ([ir.pointer(b, param(s, c)) for s in streams] for c in (SOURCE, TABLE))
    limit, bits = [param(s, LIMIT) for s in streams], [b.trunc(param(s, BITS), I32) for s in streams]
    shift = [ir.broadcast(b, p, WIDTH) for p in bits]
    mask = [ir.broadcast(b, b.sub(b.shl(I32(1), p), I32(1)), WIDTH) for p in bits]
    target = [param(s, TARGET) for s in streams]
    first = [ir.load(b, ir.element(b, states, I32, I64(i * WIDTH)), of) for i in range(n_states)]
    loop = ir.Loop(b, n_groups, [*first, *(param(s, POSITION) for s in streams)])
    x, position = loop.values[:n_states], loop.values[n_states:]
    steps = ir.Loop(b, I64(STEPS), [*x, *position, *[ir.zero(of)] * n_states])
    x, position, four = steps.values[:n_states], steps.values[n_states:-n_states], steps.values[-n_states:]
    for v in range(VECTORS):
        for s in streams:
            i = s * VECTORS + v
            entry = ir.lookup(b, table[s], b.and_(x[i], mask[s]))
            bias = b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH))
            y = b.add(b.mul(b.lshr(entry, splat(20, I32, WIDTH)), b.lshr(x[i], shift[s])), bias)
            low = b.icmp_unsigned("==", b.lshr(y, splat(16, I32, WIDTH)), ir.zero(of))
            words = b.zext(ir.load(b, ir.element(b, source[s], I16, position[s]), vector(I16, WIDTH)), of)
            words = ir.expand(b, words, low, permutations)
            x[i] = b.select(low, b.or_(b.shl(y, splat(16, I32, WIDTH)), words), y)
            position[s] = b.add(position[s], ir.popcount(b, low))
            four[i] = b.or_(b.lshr(four[i], splat(8, I32, WIDTH)), b.shl(entry, splat(24, I32, WIDTH)))
    last = steps.close([*x, *position, *four])
    x, position, four = last[:n_states], last[n_states:-n_states], last[-n_states:]
    for i, symbols in enumerate(four):
        to = b.add(target[i // VECTORS], b.mul(loop.index, I64(GROUP)))
        ir.store(b, symbols, ir.element(b, ir.pointer(b, to), I8, I64(4 * WIDTH * (i % VECTORS))))
    position = [b.select(b.icmp_signed("<", p, m), p, m) for p, m in zip(position, limit, strict=True)]
    out = loop.close([*x, *position])
    for i in range(n_states):
        ir.store(b, out[i], ir.element(b, states, I32, I64(i * WIDTH)))
    for s in streams:
        ir.store(b, out[n_states + s], ir.element(b, params, I64, I64(s * N_PARAMS + POSITION)))


class _Entries:
    """Frequencies and starts of symbols: words ``freq << 20 | start << 8`` for each step of some lanes.

    Where the CPU permutes bytes of two registers, the table is three planes of 256 bytes and a lookup is six instructions for
    64 symbols; elsewhere it is 256 words.
    """

    def __init__(self, b: Any, table: Any) -> None:
        self.b, self.table, self.planes = b, table, list[list[Any]]()
        if ir.BYTE_LOOKUP:
            at = ((ir.element(b, table, I8, I64(256 * p + 64 * i)) for i in range(4)) for p in range(3))
            self.planes = [[ir.load(b, a, vector(I8, 64)) for a in plane] for plane in at]

    def of(self, four: Any) -> list[Any]:
        """Entries of the four symbols of each lane; the low byte of an entry is unspecified."""
        b = self.b
        if not self.planes:
            indices = [b.and_(b.lshr(four, splat(8 * j, I32, WIDTH)), splat(255, I32, WIDTH)) for j in range(STEPS)]
            return [ir.lookup(b, self.table, index) for index in indices]
        low, middle, high = (ir.lookup_bytes(b, plane, b.bitcast(four, vector(I8, 64))) for plane in self.planes)
        entries = []
        for j in range(STEPS):
            two = ir.shuffle(b, low, middle, [i for lane in range(WIDTH) for i in (4 * lane + j, 64 + 4 * lane + j) * 2])
            order = [i for lane in range(WIDTH) for i in (4 * lane, 4 * lane, 4 * lane + 1, 64 + 4 * lane + j)]
            entries.append(b.bitcast(ir.shuffle(b, two, high, order), vector(I32, WIDTH)))
        return entries


def _encode(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any, n_streams: int) -> None:
    """The encoder's loop: chapter 9.3. Lanes stand in the registers in descending order, as they are written.

    A state before the division is below ``freq << 32 - bits``, so with 11 bits or more the quotient is below 2^21. The
    float32 quotient is then off by less than 0.25; less another 0.25 it is the quotient rounded down, or one too low.
    """

    def param(s: int, column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(s * N_PARAMS + column)), I64)

    streams, of, floats, backwards = range(n_streams), vector(I32, WIDTH), vector(F32, WIDTH), range(WIDTH - 1, -1, -1)
    symbols, target = ([ir.pointer(b, param(s, c)) for s in streams] for c in (SYMBOLS, WORDS))
    tables = [_Entries(b, ir.pointer(b, param(s, TABLE))) for s in streams]
    bits = [b.trunc(param(s, BITS), I32) for s in streams]
    high = [ir.broadcast(b, b.sub(I32(32), p), WIDTH) for p in bits]
    whole = [ir.broadcast(b, b.shl(I32(1), p), WIDTH) for p in bits]
    n_states = n_streams * VECTORS
    first = [ir.load(b, ir.element(b, states, I32, I64(i * WIDTH)), of) for i in range(n_states)]
    first = [ir.shuffle(b, x, x, backwards) for x in first]
    loop = ir.Loop(b, n_groups, [*first, *(param(s, POSITION) for s in streams)])
    x, position = loop.values[:n_states], loop.values[n_states:]
    group = b.mul(b.sub(b.sub(n_groups, I64(1)), loop.index), I64(GROUP))
    entries = []
    for i in range(n_states):
        at = b.add(group, I64(4 * WIDTH * (i % VECTORS)))
        four = ir.load(b, ir.element(b, symbols[i // VECTORS], I8, at), of)
        entries.append(tables[i // VECTORS].of(ir.shuffle(b, four, four, backwards)))
    for j in range(STEPS - 1, -1, -1):
        for v in range(VECTORS - 1, -1, -1):
            for s in streams:
                i = s * VECTORS + v
                entry = entries[i][j]
                freq, start = b.lshr(entry, splat(20, I32, WIDTH)), b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH))
                over = b.icmp_signed(">=", b.lshr(x[i], high[s]), freq)
                words = b.trunc(ir.compress(b, x[i], over, permutations), vector(I16, WIDTH))
                ir.store(b, words, ir.element(b, target[s], I16, position[s]))
                position[s] = b.add(position[s], ir.popcount(b, over))
                y = b.select(over, b.lshr(x[i], splat(16, I32, WIDTH)), x[i])
                quotient = b.fdiv(b.uitofp(y, floats), b.sitofp(freq, floats))
                q = b.fptosi(b.fsub(quotient, splat(0.25, F32, WIDTH)), of)
                more = b.icmp_signed(">=", b.sub(y, b.mul(q, freq)), freq)
                q = b.select(more, b.add(q, splat(1, I32, WIDTH)), q)
                x[i] = b.add(b.add(y, start), b.mul(q, b.sub(whole[s], freq)))
    out = loop.close([*x, *position])
    for i in range(n_states):
        ir.store(b, ir.shuffle(b, out[i], out[i], backwards), ir.element(b, states, I32, I64(i * WIDTH)))
    for s in streams:
        ir.store(b, out[n_states + s], ir.element(b, params, I64, I64(s * N_PARAMS + POSITION)))


def _reverse(b: Any, params: Any, count: Any) -> None:
    """Copy `count` vectors of `REVERSED` words each from SOURCE to TARGET, in reverse order."""
    words, out = (ir.pointer(b, ir.load(b, ir.element(b, params, I64, I64(c)), I64)) for c in (SOURCE, TARGET))
    loop = ir.Loop(b, count, [])
    behind = b.mul(b.sub(count, b.add(loop.index, I64(1))), I64(REVERSED))
    some = ir.load(b, ir.element(b, words, I16, behind), vector(I16, REVERSED))
    some = ir.shuffle(b, some, some, range(REVERSED - 1, -1, -1))
    ir.store(b, some, ir.element(b, out, I16, b.mul(loop.index, I64(REVERSED))))
    loop.close([])


# ---- native functions; the rows of `params`, the states and the permutations are given by their addresses --------------------
def decoder(n_streams: int) -> int:
    """Decodes groups of each stream, going on from states and position: ``(params, states, permutations, n_groups)``."""

    def emit(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        rows, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        _decode(b, rows, lanes, orders, n_groups, n_streams)

    return native(f"decode_groups_{n_streams}", emit, 4)


def encoder(n_streams: int) -> int:
    """Encodes groups of each stream, the last one first, going on from states and position: arguments as for `decoder`.

    Words come in the same order.
    """

    def emit(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        rows, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        _encode(b, rows, lanes, orders, n_groups, n_streams)

    return native(f"encode_groups_{n_streams}", emit, 4)


def reverser() -> int:
    """Copies words in reverse order: ``(params, n_vectors)``, vectors of `REVERSED` words."""

    def emit(b: Any, params: Any, n_vectors: Any) -> None:
        _reverse(b, ir.pointer(b, params), n_vectors)

    return native("reverse_words", emit, 2)
