"""rANS as vectors: the inner loops of the numba backend on CPUs with AVX-512 or AVX2.

A kernel works on one stream, or on two at once so that one's latency hides behind the other's. What it has to know of a
stream stands in a row of `params`, addresses included; it trusts that row, and distrusts what the addresses hold:
the position in the words is cut to `LIMIT` after each group, so it reads at most 288 bytes beyond that (`SLACK_NBYTES`),
which the caller has there.

In registers, a vector holds the states of 8 or 16 neighbouring lanes. Four symbols of each make a vector of bytes in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from numba.core import types

from wcodec.backends import numba_ir as ir
from wcodec.backends.numba_ir import F32, I8, I16, I32, I64, WIDTH, intrinsic, splat, vector

LANES, STEPS, GROUP = 32, 4, 128
VECTORS: Final = LANES // WIDTH
SLACK_NBYTES: Final = 2 * (GROUP + WIDTH)

# Columns of `params`, all int64. Decoding: where the words are, the word to read next, the position that is too far, the
# table, its bits, where words go, groups of a row, bytes from the end of a row to the next, groups left of this row, the window's
# base, where up to three lower planes are.
SOURCE, POSITION, LIMIT, TABLE, BITS, TARGET, ROW_GROUPS, ROW_JUMP, LEFT, BASE, AHEAD, LOWER = range(12)
# Encoding: the symbols; where words go, the last one of the stream first. POSITION, TABLE and BITS as above.
SYMBOLS, WORDS = SOURCE, TARGET
N_PARAMS: Final = 16
AHEAD_NBYTES: Final = 512  #: how far ahead of the loads cache lines are asked for

#: Kinds of fused kernels: words out of a plane of symbols and raw lower planes. Nibble pairs or bytes, bytes of a word, map.
KINDS: Final = (
    (False, 1, "identity"), (False, 1, "offset"), (False, 1, "exponent 4"), (False, 1, "exponent 5"),
    (True, 1, "identity"), (True, 1, "offset"), (True, 1, "exponent 4"), (True, 1, "exponent 5"),
    (False, 2, "identity"), (False, 2, "offset"), (False, 2, "exponent 8"), (True, 2, "exponent 8"),
    (False, 4, "identity"), (False, 4, "offset"), (False, 4, "exponent 8"), (True, 4, "exponent 8"),
)  # fmt: skip


class _Symbols:
    """Stores the 128 symbols of a group."""

    def __init__(self, b: Any, param: Callable[[int, int], Any], n_streams: int) -> None:
        self.b, self.first = b, [param(s, TARGET) for s in range(n_streams)]

    def store(self, groups: list[list[Any]], values: list[Any]) -> list[Any]:
        """Store a group of each stream; `groups` are vectors of u32. Returns the new `values`."""
        for group, target in zip(groups, values, strict=True):
            for v, four in enumerate(group):
                ir.store(self.b, four, ir.element(self.b, ir.pointer(self.b, target), I8, I64(4 * WIDTH * v)))
        return [self.b.add(target, I64(GROUP)) for target in values]


class _Words:
    """Makes words out of the symbols of a group and bytes of the lower planes, and stores them."""

    def __init__(self, b: Any, param: Callable[[int, int], Any], n_streams: int, kind: tuple[bool, int, str]) -> None:
        self.b, self.n, (self.pairs, self.word_nbytes, self.map) = b, 4 * WIDTH, kind
        self.n_lower = 1 if self.pairs and self.word_nbytes == 1 else self.word_nbytes - 1
        streams = range(n_streams)
        self.base = [ir.broadcast(b, b.trunc(param(s, BASE), I8), self.n) for s in streams]
        self.ahead = [param(s, AHEAD) for s in streams]
        self.jump, self.row = [param(s, ROW_JUMP) for s in streams], [param(s, ROW_GROUPS) for s in streams]
        self.first = [v for s in streams for v in (param(s, TARGET), param(s, LEFT), *(param(s, LOWER + k) for k in range(self.n_lower)))]

    def store(self, groups: list[list[Any]], values: list[Any]) -> list[Any]:
        b, size, new = self.b, 2 + self.n_lower, []
        for s, group in enumerate(groups):
            target, left, *lower = values[s * size : (s + 1) * size]
            to, done, read = ir.pointer(b, target), 0, 0
            for four in group:
                symbols = b.bitcast(four, vector(I8, self.n))
                for tops in self._tops(s, symbols, lower, read):
                    planes = [tops]
                    if self.word_nbytes > 1:
                        planes += [self._bytes(at, read) for at in lower]
                        read += self.n
                    for words in self._merge(planes):
                        ir.store(b, words, ir.element(b, to, I8, I64(done)))
                        done += self.n
                if self.word_nbytes == 1:
                    read += self.n
            for line in range(0, done, 64):
                ir.prefetch_line(b, b.add(b.add(target, self.ahead[s]), I64(line)))
            for at in lower:
                for line in range(0, read, 64):
                    ir.prefetch_line(b, b.add(at, I64(AHEAD_NBYTES + line)), 0)
            left = b.sub(left, I64(1))
            over = b.icmp_signed("==", left, I64(0))
            target = b.add(b.add(target, I64(done)), b.select(over, self.jump[s], I64(0)))
            new += [target, b.select(over, self.row[s], left), *(b.add(at, I64(read)) for at in lower)]
        return new

    def _bytes(self, at: Any, offset: int) -> Any:
        return ir.load(self.b, ir.element(self.b, ir.pointer(self.b, at), I8, I64(offset)), vector(I8, self.n))

    def _constant(self, value: int) -> Any:
        return splat(value - 256 if value > 127 else value, I8, self.n)

    def _tops(self, s: int, symbols: Any, lower: list[Any], read: int) -> list[Any]:
        """Top bytes of mapped words, in order."""
        b, low, high, four = self.b, self._constant(0x0F), self._constant(0xF0), self._constant(4)
        if not self.pairs:
            return [symbols]
        if self.word_nbytes > 1:
            codes = ir.zipped(b, b.and_(symbols, low), b.lshr(symbols, four))
            return [b.add(c, self.base[s]) for c in codes]
        halves = self._bytes(lower[0], read)
        even = b.or_(b.shl(symbols, four), b.and_(halves, low))
        return ir.zipped(b, even, b.or_(b.and_(symbols, high), b.lshr(halves, four)))

    def _merge(self, planes: list[Any]) -> list[Any]:
        """Words out of the bytes of mapped ones, as vectors of bytes."""
        b, p = self.b, self._unmap(planes)
        if self.word_nbytes == 1:
            return p
        high = ir.zipped(b, p[1], p[0])
        if self.word_nbytes == 2:
            return high
        halves, out = vector(I16, self.n // 2), []
        for low, top in zip(ir.zipped(b, p[3], p[2]), high, strict=True):
            out += [b.bitcast(w, vector(I8, self.n)) for w in ir.zipped(b, b.bitcast(low, halves), b.bitcast(top, halves))]
        return out

    def _unmap(self, p: list[Any]) -> list[Any]:
        b, c = self.b, self._constant
        if self.map == "offset":
            return [b.xor(p[0], c(0x80)), *p[1:]]
        if self.map == "exponent 8":  # exponent | sign | mantissa, in two bytes
            top = b.or_(b.and_(p[1], c(0x80)), b.lshr(p[0], c(1)))
            return [top, b.or_(b.and_(p[1], c(0x7F)), b.shl(p[0], c(7))), *p[2:]]
        if self.map == "identity":
            return p
        f = 7 - int(self.map[-1])  # bits of the mantissa, below which the sign stands
        sign, mantissa = b.shl(b.and_(p[0], c(1 << f)), c(7 - f)), b.and_(p[0], c((1 << f) - 1))
        return [b.or_(b.or_(sign, b.and_(b.lshr(p[0], c(1)), c(0x7F >> f << f))), mantissa)]


def _decode(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any, n_streams: int, kind: Any) -> None:
    """The decoder's loop: chapter 9.2 of the spec, 8 or 16 lanes at a time."""

    def param(s: int, column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(s * N_PARAMS + column)), I64)

    streams, n_states, of = range(n_streams), n_streams * VECTORS, vector(I32, WIDTH)
    source, table = ([ir.pointer(b, param(s, c)) for s in streams] for c in (SOURCE, TABLE))
    limit, bits = [param(s, LIMIT) for s in streams], [b.trunc(param(s, BITS), I32) for s in streams]
    shift = [ir.broadcast(b, p, WIDTH) for p in bits]
    mask = [ir.broadcast(b, b.sub(b.shl(I32(1), p), I32(1)), WIDTH) for p in bits]
    sink = _Symbols(b, param, n_streams) if kind is None else _Words(b, param, n_streams, kind)
    first = [ir.load(b, ir.element(b, states, I32, I64(i * WIDTH)), of) for i in range(n_states)]
    loop = ir.Loop(b, n_groups, [*first, *(param(s, POSITION) for s in streams), *sink.first])
    x, position = loop.values[:n_states], loop.values[n_states : n_states + n_streams]
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
    stored = sink.store([four[s * VECTORS : (s + 1) * VECTORS] for s in streams], loop.values[n_states + n_streams :])
    position = [b.select(b.icmp_signed("<", p, m), p, m) for p, m in zip(position, limit, strict=True)]
    out = loop.close([*x, *position, *stored])
    for i in range(n_states):
        ir.store(b, out[i], ir.element(b, states, I32, I64(i * WIDTH)))
    for s in streams:
        ir.store(b, out[n_states + s], ir.element(b, params, I64, I64(s * N_PARAMS + POSITION)))


def _encode(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
    """The encoder's loop: chapter 9.3. Lanes stand in the registers in descending order, as they are written.

    A state before the division is below ``freq << 32 - bits``, so with 11 bits or more the quotient is below 2^21. The
    float32 quotient is then off by less than 0.25; less another 0.25 it is the quotient rounded down, or one too low.
    """

    def param(column: int) -> Any:
        return ir.load(b, ir.element(b, params, I64, I64(column)), I64)

    of, floats, backwards = vector(I32, WIDTH), vector(F32, WIDTH), range(WIDTH - 1, -1, -1)
    symbols, table, target = (ir.pointer(b, param(c)) for c in (SYMBOLS, TABLE, WORDS))
    bits = b.trunc(param(BITS), I32)
    high, whole = ir.broadcast(b, b.sub(I32(32), bits), WIDTH), ir.broadcast(b, b.shl(I32(1), bits), WIDTH)
    loop = ir.Loop(b, n_groups, [*[splat(1 << 16, I32, WIDTH)] * VECTORS, I64(0)])
    x, position = loop.values[:VECTORS], loop.values[VECTORS]
    group = b.mul(b.sub(b.sub(n_groups, I64(1)), loop.index), I64(GROUP))
    fours = [ir.load(b, ir.element(b, symbols, I8, b.add(group, I64(4 * WIDTH * v))), of) for v in range(VECTORS)]
    fours = [ir.shuffle(b, four, four, backwards) for four in fours]
    steps = ir.Loop(b, I64(STEPS), [*x, position, *fours])
    x, position, fours = steps.values[:VECTORS], steps.values[VECTORS], steps.values[VECTORS + 1 :]
    for v in range(VECTORS - 1, -1, -1):
        entry = ir.lookup(b, table, b.lshr(fours[v], splat(24, I32, WIDTH)))  # the last symbol of four
        fours[v] = b.shl(fours[v], splat(8, I32, WIDTH))
        freq, start = b.lshr(entry, splat(16, I32, WIDTH)), b.and_(entry, splat(0xFFFF, I32, WIDTH))
        over = b.icmp_signed(">=", b.lshr(x[v], high), freq)
        words = b.trunc(ir.compress(b, x[v], over, permutations), vector(I16, WIDTH))
        ir.store(b, words, ir.element(b, target, I16, position))
        position = b.add(position, ir.popcount(b, over))
        y = b.select(over, b.lshr(x[v], splat(16, I32, WIDTH)), x[v])
        quotient = b.fdiv(b.uitofp(y, floats), b.sitofp(freq, floats))
        q = b.fptosi(b.fsub(quotient, splat(0.25, F32, WIDTH)), of)
        more = b.icmp_signed(">=", b.sub(y, b.mul(q, freq)), freq)
        q = b.select(more, b.add(q, splat(1, I32, WIDTH)), q)
        x[v] = b.add(b.add(y, start), b.mul(q, b.sub(whole, freq)))
    last = steps.close([*x, position, *fours])
    x, position = last[:VECTORS], last[VECTORS]
    *states_out, position = loop.close([*x, position])
    for v in range(VECTORS):
        ir.store(b, ir.shuffle(b, states_out[v], states_out[v], backwards), ir.element(b, states, I32, I64(v * WIDTH)))
    ir.store(b, position, ir.element(b, params, I64, I64(POSITION)))


def _data(context: Any, b: Any, signature: Any, args: Any) -> list[Any]:
    """Pointers of array arguments, other arguments as they are."""
    return [
        context.make_array(t)(context, b, value).data if isinstance(t, types.Array) else value
        for t, value in zip(signature.args, args, strict=True)
    ]


def _decoder(n_streams: int) -> Any:
    def decode_groups(typing: Any, params: Any, states: Any, permutations: Any, n_groups: Any, kind: Any) -> Any:
        """Decode `n_groups` of each stream. The length of the tuple `kind` says which kernel: one more than its number in
        `KINDS`, or 0 for one that stores symbols; numba compiles for types, and this is one that it can tell apart."""
        number = len(kind)

        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            rows, lanes, orders, count, _ = _data(context, b, signature, args)
            _decode(b, rows, lanes, orders, count, n_streams, None if number == 0 else KINDS[number - 1])
            return context.get_dummy_value()

        return types.void(params, states, permutations, n_groups, kind), codegen

    return intrinsic(decode_groups)


decode_groups_1, decode_groups_2 = _decoder(1), _decoder(2)


@intrinsic
def encode_groups(typing: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> Any:
    """Encode a stream of `n_groups` groups: words from the last to the first, then the position, and the states."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _encode(b, *_data(context, b, signature, args))
        return context.get_dummy_value()

    return types.void(params, states, permutations, n_groups), codegen
