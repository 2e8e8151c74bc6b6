"""rANS as vectors: the inner loops of the numba backend on CPUs with AVX-512 or AVX2.

A kernel works on one stream, or on two at once so that one's latency hides behind the other's. What
it has to know of a stream stands in a row of `params`, addresses included; it trusts that row, and
distrusts what the addresses hold: the position in the words is cut to `LIMIT` after each group, so
it reads at most 288 bytes beyond that (`SLACK_NBYTES`), which the caller has there.

In registers, a vector holds the states of 8 or 16 neighbouring lanes. Four symbols of each make a
vector of bytes in order.
"""

from __future__ import annotations

from typing import Any, Final

from wcodec.backends.numba import ir
from wcodec.backends.numba.compiling import native
from wcodec.backends.numba.ir import F32, I8, I16, I32, I64, WIDTH, splat, vector

LANES, STEPS, GROUP = 32, 4, 128
VECTORS: Final = LANES // WIDTH
SLACK_NBYTES: Final = 2 * (GROUP + WIDTH)

# Columns of `params`, all int64. Decoding: where the words are, the word to read next, the position
# that is too far, the table, its bits, where symbols go.
SOURCE, POSITION, LIMIT, TABLE, BITS, TARGET = range(6)
# Encoding: the symbols; where words go, the last one of the stream first. POSITION, TABLE and BITS
# as above.
SYMBOLS, WORDS = SOURCE, TARGET
# With contexts: the class of each symbol, a byte each, and of each of 16 classes where in TABLE its
# part begins, a u32 each.
CLASSES, PARTS = 6, 7
N_PARAMS: Final = 8
REVERSED: Final = 2 * WIDTH  #: words of a vector of `reverser`
MAPPED: Final = 64  #: bytes of a vector of `mapper`

#: Kinds of words that are split and merged as vectors: nibble pairs or bytes, bytes of a word, map.
KINDS: Final = (
    (False, 1, "identity"), (False, 1, "offset"), (False, 1, "exponent 4"),
    (False, 1, "exponent 5"), (True, 1, "identity"), (True, 1, "offset"),
    (True, 1, "exponent 4"), (True, 1, "exponent 5"), (False, 2, "identity"),
    (False, 2, "offset"), (False, 2, "exponent 8"), (True, 2, "exponent 8"),
    (False, 4, "identity"), (False, 4, "offset"), (False, 4, "exponent 8"),
    (True, 4, "exponent 8"),
)  # fmt: skip


def _runs(*sizes: int) -> list[tuple[int, int]]:
    """Where each of several runs starts, and its size."""
    return [(sum(sizes[:i]), n) for i, n in enumerate(sizes)]


class _Classes:
    """Where the part of a table begins that codes each symbol (R9.12); does nothing without
    contexts.
    """

    def __init__(self, b: Any, source: Any, parts: Any, contexts: bool) -> None:
        self.b, self.source, self.contexts = b, ir.pointer(b, source), contexts
        self.parts = ir.load_16(b, ir.pointer(b, parts)) if contexts else []

    def load(self, at: Any) -> list[Any]:
        """Classes of the four symbols of each lane, in one vector, from byte `at` on."""
        return (
            [ir.load(self.b, ir.element(self.b, self.source, I8, at), vector(I32, WIDTH))]
            if self.contexts
            else []
        )

    def add(self, four: list[Any], step: int, index: Any) -> Any:
        """Make an index into the part of the table of a step's symbol one into the whole table."""
        for classes in four:
            own = self.b.lshr(classes, splat(8 * step, I32, WIDTH))
            return self.b.add(ir.lookup_16(self.b, self.parts, own), index)
        return index


def _decode(
    b: Any,
    params: Any,
    states: Any,
    permutations: Any,
    n_groups: Any,
    n_streams: int,
    contexts: bool,
) -> None:
    """The decoder's loop: chapter 9.2 of the spec, 8 or 16 lanes at a time; with contexts 9.4."""

    def param(s: int, column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(s * N_PARAMS + column)), I64)

    streams, n_states, of = range(n_streams), n_streams * VECTORS, vector(I32, WIDTH)
    source, table = ([ir.pointer(b, param(s, c)) for s in streams] for c in (SOURCE, TABLE))
    limit, bits = (
        [param(s, LIMIT) for s in streams],
        [b.trunc(param(s, BITS), I32) for s in streams],
    )
    shift = [ir.broadcast(b, p, WIDTH) for p in bits]
    mask = [ir.broadcast(b, b.sub(b.shl(I32(1), p), I32(1)), WIDTH) for p in bits]
    target = [param(s, TARGET) for s in streams]
    by_class = [_Classes(b, param(s, CLASSES), param(s, PARTS), contexts) for s in streams]
    first = [ir.load(b, ir.element(b, states, I32, I64(i * WIDTH)), of) for i in range(n_states)]
    loop = ir.Loop(b, n_groups, [*first, *(param(s, POSITION) for s in streams)])
    x, position = loop.values[:n_states], loop.values[n_states:]
    at = b.mul(loop.index, I64(GROUP))
    classes = [
        c
        for one in by_class
        for v in range(VECTORS)
        for c in one.load(b.add(at, I64(4 * WIDTH * v)))
    ]
    steps = ir.Loop(b, I64(STEPS), [*x, *position, *[ir.zero(of)] * n_states, *classes])
    x, position, four, classes = (
        steps.values[k : k + n] for k, n in _runs(n_states, n_streams, n_states, len(classes))
    )
    for v in range(VECTORS):
        for s in streams:
            i = s * VECTORS + v
            index = by_class[s].add(classes[i : i + 1], 0, b.and_(x[i], mask[s]))
            entry = ir.lookup(b, table[s], index, 32 if contexts else 16)
            bias = b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH))
            y = b.add(b.mul(b.lshr(entry, splat(20, I32, WIDTH)), b.lshr(x[i], shift[s])), bias)
            low = b.icmp_unsigned("==", b.lshr(y, splat(16, I32, WIDTH)), ir.zero(of))
            words = b.zext(
                ir.load(b, ir.element(b, source[s], I16, position[s]), vector(I16, WIDTH)), of
            )
            words = ir.expand(b, words, low, permutations)
            x[i] = b.select(low, b.or_(b.shl(y, splat(16, I32, WIDTH)), words), y)
            position[s] = b.add(position[s], ir.popcount(b, low))
            four[i] = b.or_(
                b.lshr(four[i], splat(8, I32, WIDTH)), b.shl(entry, splat(24, I32, WIDTH))
            )
    last = steps.close([*x, *position, *four, *(b.lshr(c, splat(8, I32, WIDTH)) for c in classes)])
    x, position, four = (last[k : k + n] for k, n in _runs(n_states, n_streams, n_states))
    for i, symbols in enumerate(four):
        to = b.add(target[i // VECTORS], b.mul(loop.index, I64(GROUP)))
        ir.store(b, symbols, ir.element(b, ir.pointer(b, to), I8, I64(4 * WIDTH * (i % VECTORS))))
    position = [
        b.select(b.icmp_signed("<", p, m), p, m) for p, m in zip(position, limit, strict=True)
    ]
    out = loop.close([*x, *position])
    for i in range(n_states):
        ir.store(b, out[i], ir.element(b, states, I32, I64(i * WIDTH)))
    for s in streams:
        ir.store(b, out[n_states + s], ir.element(b, params, I64, I64(s * N_PARAMS + POSITION)))


class _Entries:
    """Frequencies and starts of symbols: words ``freq << 20 | start << 8`` for each step of some
    lanes.

    Where the CPU permutes bytes of two registers, the table is three planes of 256 bytes and a
    lookup is six instructions for 64 symbols; elsewhere, and with contexts, it is 256 words.
    """

    def __init__(self, b: Any, table: Any, by_class: _Classes) -> None:
        self.b, self.table, self.by_class, self.planes = b, table, by_class, list[list[Any]]()
        if ir.BYTE_LOOKUP and not by_class.contexts:
            at = (
                (ir.element(b, table, I8, I64(256 * p + 64 * i)) for i in range(4))
                for p in range(3)
            )
            self.planes = [[ir.load(b, a, vector(I8, 64)) for a in plane] for plane in at]

    def of(self, four: Any, classes: list[Any]) -> list[Any]:
        """Entries of the four symbols of each lane, and their classes; the low byte of an entry is
        unspecified.
        """
        b = self.b
        if not self.planes:
            indices = [
                b.and_(b.lshr(four, splat(8 * j, I32, WIDTH)), splat(255, I32, WIDTH))
                for j in range(STEPS)
            ]
            bits = 32 if self.by_class.contexts else 16
            return [
                ir.lookup(b, self.table, self.by_class.add(classes, j, index), bits)
                for j, index in enumerate(indices)
            ]
        low, middle, high = (
            ir.lookup_bytes(b, plane, b.bitcast(four, vector(I8, 64))) for plane in self.planes
        )
        entries = []
        for j in range(STEPS):
            two = ir.shuffle(
                b,
                low,
                middle,
                [i for lane in range(WIDTH) for i in (4 * lane + j, 64 + 4 * lane + j) * 2],
            )
            order = [
                i
                for lane in range(WIDTH)
                for i in (4 * lane, 4 * lane, 4 * lane + 1, 64 + 4 * lane + j)
            ]
            entries.append(b.bitcast(ir.shuffle(b, two, high, order), vector(I32, WIDTH)))
        return entries


def _encode(
    b: Any,
    params: Any,
    states: Any,
    permutations: Any,
    n_groups: Any,
    n_streams: int,
    contexts: bool,
) -> None:
    """The encoder's loop: chapter 9.3.

    Lanes stand in the registers in descending order, as they are written.

    A state before the division is below ``freq << 32 - bits``, so with 11 bits or more the quotient
    is below 2^21. The float32 quotient is then off by less than 0.25; less another 0.25 it is the
    quotient rounded down, or one too low.
    """

    def param(s: int, column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(s * N_PARAMS + column)), I64)

    streams, of, floats, backwards = (
        range(n_streams),
        vector(I32, WIDTH),
        vector(F32, WIDTH),
        range(WIDTH - 1, -1, -1),
    )
    symbols, target = ([ir.pointer(b, param(s, c)) for s in streams] for c in (SYMBOLS, WORDS))
    by_class = [_Classes(b, param(s, CLASSES), param(s, PARTS), contexts) for s in streams]
    tables = [_Entries(b, ir.pointer(b, param(s, TABLE)), by_class[s]) for s in streams]
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
        classes = [ir.shuffle(b, c, c, backwards) for c in by_class[i // VECTORS].load(at)]
        entries.append(tables[i // VECTORS].of(ir.shuffle(b, four, four, backwards), classes))
    for j in range(STEPS - 1, -1, -1):
        for v in range(VECTORS - 1, -1, -1):
            for s in streams:
                i = s * VECTORS + v
                entry = entries[i][j]
                freq, start = (
                    b.lshr(entry, splat(20, I32, WIDTH)),
                    b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH)),
                )
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
        ir.store(
            b, ir.shuffle(b, out[i], out[i], backwards), ir.element(b, states, I32, I64(i * WIDTH))
        )
    for s in streams:
        ir.store(b, out[n_states + s], ir.element(b, params, I64, I64(s * N_PARAMS + POSITION)))


def _reverse(b: Any, params: Any, count: Any) -> None:
    """Copy `count` vectors of `REVERSED` words each from SOURCE to TARGET, in reverse order."""
    words, out = (
        ir.pointer(b, ir.load(b, ir.element(b, params, I64, I64(c)), I64)) for c in (SOURCE, TARGET)
    )
    loop = ir.Loop(b, count, [])
    behind = b.mul(b.sub(count, b.add(loop.index, I64(1))), I64(REVERSED))
    some = ir.load(b, ir.element(b, words, I16, behind), vector(I16, REVERSED))
    some = ir.shuffle(b, some, some, range(REVERSED - 1, -1, -1))
    ir.store(b, some, ir.element(b, out, I16, b.mul(loop.index, I64(REVERSED))))
    loop.close([])


def _map_bytes(b: Any, source: Any, target: Any, table: Any, count: Any) -> None:
    """Replace each of `count` vectors of 64 bytes by what a table of 256 bytes says.

    Needs `ir.BYTE_LOOKUP`.
    """
    of = vector(I8, MAPPED)
    parts = [ir.load(b, ir.element(b, table, I8, I64(64 * i)), of) for i in range(4)]
    loop = ir.Loop(b, count, [])
    at = b.mul(loop.index, I64(MAPPED))
    mapped = ir.lookup_bytes(b, parts, ir.load(b, ir.element(b, source, I8, at), of))
    ir.store(b, mapped, ir.element(b, target, I8, at))
    loop.close([])


# ---- native functions; the rows of `params`, states and permutations are given by address ------
def decoder(n_streams: int, contexts: bool = False) -> int:
    """Decodes groups of each stream, going on from states and position: ``(params, states,
    permutations, n_groups)``.
    """

    def emit(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        rows, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        _decode(b, rows, lanes, orders, n_groups, n_streams, contexts)

    return native(f"decode_{'context' if contexts else 'groups'}_{n_streams}", emit, 4)


def encoder(n_streams: int, contexts: bool = False) -> int:
    """Encodes groups of each stream, the last one first, going on from states and position:
    arguments as for `decoder`.

    Words come in the same order.
    """

    def emit(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        rows, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        _encode(b, rows, lanes, orders, n_groups, n_streams, contexts)

    return native(f"encode_{'context' if contexts else 'groups'}_{n_streams}", emit, 4)


def reverser() -> int:
    """Copies words in reverse order: ``(params, n_vectors)``, vectors of `REVERSED` words."""

    def emit(b: Any, params: Any, n_vectors: Any) -> None:
        _reverse(b, ir.pointer(b, params), n_vectors)

    return native("reverse_words", emit, 2)


def mapper() -> int:
    """Looks bytes up in a table: ``(source, target, table, n_vectors)``, vectors of `MAPPED` bytes;
    0 if that is not faster than a loop.
    """

    def emit(b: Any, source: Any, target: Any, table: Any, n_vectors: Any) -> None:
        _map_bytes(b, ir.pointer(b, source), ir.pointer(b, target), ir.pointer(b, table), n_vectors)

    return native("map_bytes", emit, 4) if ir.BYTE_LOOKUP else 0
