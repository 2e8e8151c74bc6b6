"""rANS as vectors: the inner loops of the numba backend on CPUs with AVX-512, AVX2 or NEON.

A kernel works on one stream, or on some at once so that one's latency hides behind the others'.
What it has to know of a stream stands in a record (`STREAM`), addresses included. It trusts that
record, and distrusts what the addresses hold: the position in the words is cut to `limit` after
each group, so it reads at most 288 bytes beyond that (`SLACK_NBYTES`), which the caller has there.

In registers, a vector holds the states of 8 or 16 neighbouring lanes. Four symbols of each make a
vector of bytes in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import F32, I8, I16, I32, I64, WIDTH, splat, vector
from wcodec.backends.numba.kernels import Native
from wcodec.reference.rans import GROUP, LANES, STEPS

VECTORS: Final = LANES // WIDTH
SLACK_NBYTES: Final = 2 * (GROUP + WIDTH)
REVERSED: Final = 2 * WIDTH  #: words of a vector of `reverser`
MAPPED: Final = 64  #: bytes of a vector of `mapper`
#: Streams that are decoded together, so that one's latency hides behind the others': as many as
#: have their states and symbols in registers.
TOGETHER: Final = 4 if ir.VARIANT == "avx512" else 2

#: What a kernel has to know of a stream. `source` and `target` are addresses: of the stream's words
#: and of the symbols, or the other way round where a stream is encoded.
STREAM: Final = np.dtype(
    [
        ("source", np.int64),
        ("position", np.int64),  # of the next word; where a stream is encoded, from its end
        ("limit", np.int64),  # decoding: the position that is too far
        ("table", np.int64),  # address
        ("bits", np.int64),  # log2 of the table's sum
        ("target", np.int64),
        ("classes", np.int64),  # with contexts: address of the class of each symbol, a byte each
        ("parts", np.int64),  # address of where the part of each of 16 classes begins in the table
        ("n_groups", np.int64),  # of the stream, or left of it; kernels do not read it
    ]
)
_PLACE: Final = ir.places(STREAM)


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


class _Streams:
    """Parameters and states of the streams that a kernel works on.

    States are listed as vectors: all of the first stream, then all of the next one.
    """

    def __init__(self, b: Any, params: Any, states: Any, n_streams: int, contexts: bool) -> None:
        self.b, self.params, self.states = b, params, states
        self.numbers, self.n_states = range(n_streams), n_streams * VECTORS
        self.bits = [b.trunc(self.param(s, "bits"), I32) for s in self.numbers]
        self.by_class = [
            _Classes(b, self.param(s, "classes"), self.param(s, "parts"), contexts)
            for s in self.numbers
        ]

    def param(self, stream: int, name: str) -> Any:
        """A parameter of a stream."""
        return ir.load(self.b, self._place(stream, name), I64)

    def each(self, name: str) -> list[Any]:
        """A parameter of all streams."""
        return [self.param(s, name) for s in self.numbers]

    def _place(self, stream: int, name: str) -> Any:
        return ir.element(self.b, self.params, I64, I64(stream * len(_PLACE) + _PLACE[name]))

    def load_states(self) -> list[Any]:
        """All states."""
        of = vector(I32, WIDTH)
        places = (
            ir.element(self.b, self.states, I32, I64(i * WIDTH)) for i in range(self.n_states)
        )
        return [ir.load(self.b, place, of) for place in places]

    def store(self, states: list[Any], positions: list[Any]) -> None:
        """Store all states and positions."""
        for i, x in enumerate(states):
            ir.store(self.b, x, ir.element(self.b, self.states, I32, I64(i * WIDTH)))
        for s, position in zip(self.numbers, positions, strict=True):
            ir.store(self.b, position, self._place(s, "position"))


# ---- decoding ----------------------------------------------------------------------------------
class _Decoder:
    """The decoder's loop: chapter 9.2 of the spec, 8 or 16 lanes at a time; with contexts 9.4."""

    def __init__(
        self, b: Any, streams: _Streams, permutations: Any, contexts: bool, gather: bool
    ) -> None:
        self.b, self.streams, self.permutations = b, streams, permutations
        self.lookup, self.index_bits = ir.gather if gather else ir.lookup, 32 if contexts else 16
        self.source, self.table = (
            [ir.pointer(b, address) for address in streams.each(name)]
            for name in ("source", "table")
        )
        self.shift = [ir.broadcast(b, p, WIDTH) for p in streams.bits]
        self.mask = [ir.broadcast(b, b.sub(b.shl(I32(1), p), I32(1)), WIDTH) for p in streams.bits]

    def run(self, n_groups: Any) -> None:
        """Decode groups."""
        b, streams = self.b, self.streams
        target, limit = streams.each("target"), streams.each("limit")
        loop = ir.Loop(b, n_groups, [*streams.load_states(), *streams.each("position")])
        at = b.mul(loop.index, I64(GROUP))
        x, position, four = self._group(
            loop.values[: streams.n_states], loop.values[streams.n_states :], at
        )
        for i, symbols in enumerate(four):
            to = ir.pointer(b, b.add(target[i // VECTORS], at))
            ir.store(b, symbols, ir.element(b, to, I8, I64(4 * WIDTH * (i % VECTORS))))
        position = [
            b.select(b.icmp_signed("<", p, m), p, m) for p, m in zip(position, limit, strict=True)
        ]
        out = loop.close([*x, *position])
        streams.store(out[: streams.n_states], out[streams.n_states :])

    def _group(self, x: list[Any], position: list[Any], at: Any) -> tuple[list[Any], ...]:
        """Decode a group of each stream, whose symbols are `at` bytes from the first.

        Returns states, positions and symbols: of each vector of lanes four a lane.
        """
        b, streams, n_states = self.b, self.streams, self.streams.n_states
        classes = [
            c
            for one in streams.by_class
            for v in range(VECTORS)
            for c in one.load(b.add(at, I64(4 * WIDTH * v)))
        ]
        none = [ir.zero(vector(I32, WIDTH))] * n_states
        steps = ir.Loop(b, I64(STEPS), [*x, *position, *none, *classes])
        n_streams = len(streams.numbers)
        x, position, four, classes = (
            steps.values[k : k + n] for k, n in _runs(n_states, n_streams, n_states, len(classes))
        )
        for v in range(VECTORS):
            for s in streams.numbers:
                i = s * VECTORS + v
                self._step(s, i, x, position, four, classes[i : i + 1])
        later = (b.lshr(c, splat(8, I32, WIDTH)) for c in classes)
        last = steps.close([*x, *position, *four, *later])
        return tuple(last[k : k + n] for k, n in _runs(n_states, n_streams, n_states))

    def _step(
        self,
        s: int,
        i: int,
        x: list[Any],
        position: list[Any],
        four: list[Any],
        classes: list[Any],
    ) -> None:
        """A symbol of each lane of vector `i`, which is of stream `s`; the lists are changed."""
        b, of = self.b, vector(I32, WIDTH)
        index = self.streams.by_class[s].add(classes, 0, b.and_(x[i], self.mask[s]))
        entry = self.lookup(b, self.table[s], index, self.index_bits)
        bias = b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH))
        y = b.add(b.mul(b.lshr(entry, splat(20, I32, WIDTH)), b.lshr(x[i], self.shift[s])), bias)
        low = b.icmp_unsigned("==", b.lshr(y, splat(16, I32, WIDTH)), ir.zero(of))
        here = ir.element(b, self.source[s], I16, position[s])
        words = ir.expand(
            b, b.zext(ir.load(b, here, vector(I16, WIDTH)), of), low, self.permutations
        )
        x[i] = b.select(low, b.or_(b.shl(y, splat(16, I32, WIDTH)), words), y)
        position[s] = b.add(position[s], ir.popcount(b, low))
        four[i] = b.or_(b.lshr(four[i], splat(8, I32, WIDTH)), b.shl(entry, splat(24, I32, WIDTH)))


# ---- encoding ----------------------------------------------------------------------------------
class _Entries:
    """Frequencies and starts of symbols: words ``freq << 20 | start << 8`` for each step of some
    lanes.

    Where the CPU permutes bytes of two registers, the table is three planes of 256 bytes: a lookup
    is six instructions for 64 symbols, and eight more put their entries together. Elsewhere, and
    with contexts, it is 256 words.
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
        # in each 16 bytes, the first symbols of four lanes, then their second ones
        order = [16 * q + 4 * lane + j for q in range(4) for j in range(4) for lane in range(4)]
        symbols = b.bitcast(four, vector(I8, 64))
        symbols = ir.shuffle(b, symbols, symbols, order)
        low, middle, high = (ir.lookup_bytes(b, plane, symbols) for plane in self.planes)
        lows, highs = ir.interleaved(b, low, low, 16), ir.interleaved(b, middle, high, 16)
        entries = []
        for pair in zip(lows, highs, strict=True):
            first, second = (b.bitcast(v, vector(I16, 32)) for v in pair)
            both = ir.interleaved(b, first, second, 8)
            entries += [b.bitcast(v, vector(I32, WIDTH)) for v in both]
        return entries


class _Encoder:
    """The encoder's loop: chapter 9.3.

    Lanes stand in the registers in descending order, as they are written. A state before the
    division is below ``freq << 32 - bits``, so with 11 bits or more the quotient is below 2^21. The
    float32 quotient is then off by less than 0.25; less another 0.25 it is the quotient rounded
    down, or one too low.
    """

    def __init__(self, b: Any, streams: _Streams, permutations: Any) -> None:
        self.b, self.streams, self.permutations = b, streams, permutations
        self.symbols, self.target = (
            [ir.pointer(b, address) for address in streams.each(name)]
            for name in ("source", "target")
        )
        self.tables = [
            _Entries(b, ir.pointer(b, table), by_class)
            for table, by_class in zip(streams.each("table"), streams.by_class, strict=True)
        ]
        self.high = [ir.broadcast(b, b.sub(I32(32), p), WIDTH) for p in streams.bits]
        self.bits = [ir.broadcast(b, p, WIDTH) for p in streams.bits]

    def _reversed(self, values: Any) -> Any:
        """The elements of a vector in reverse order."""
        return ir.shuffle(self.b, values, values, range(WIDTH - 1, -1, -1))

    def run(self, n_groups: Any) -> None:
        """Encode groups, the last one first."""
        b, streams, n_states = self.b, self.streams, self.streams.n_states
        first = list(map(self._reversed, streams.load_states()))
        loop = ir.Loop(b, n_groups, [*first, *streams.each("position")])
        x, position = loop.values[:n_states], loop.values[n_states:]
        group = b.mul(b.sub(b.sub(n_groups, I64(1)), loop.index), I64(GROUP))
        entries = []
        for i in range(n_states):
            s, at = i // VECTORS, b.add(group, I64(4 * WIDTH * (i % VECTORS)))
            four = ir.load(b, ir.element(b, self.symbols[s], I8, at), vector(I32, WIDTH))
            classes = [self._reversed(c) for c in streams.by_class[s].load(at)]
            entries.append(self.tables[s].of(self._reversed(four), classes))
        for j in range(STEPS - 1, -1, -1):
            for v in range(VECTORS - 1, -1, -1):
                for s in streams.numbers:
                    i = s * VECTORS + v
                    x[i], position[s] = self._step(s, x[i], position[s], entries[i][j])
        out = loop.close([*x, *position])
        streams.store(list(map(self._reversed, out[:n_states])), out[n_states:])

    def _step(self, s: int, x: Any, position: Any, entry: Any) -> tuple[Any, Any]:
        """A symbol of each lane of a vector of stream `s`: returns its states and the position."""
        b, of, floats = self.b, vector(I32, WIDTH), vector(F32, WIDTH)
        freq = b.lshr(entry, splat(20, I32, WIDTH))
        start = b.and_(b.lshr(entry, splat(8, I32, WIDTH)), splat(4095, I32, WIDTH))
        over = b.icmp_signed(">=", b.lshr(x, self.high[s]), freq)
        words = b.trunc(ir.compress(b, x, over, self.permutations), vector(I16, WIDTH))
        ir.store(b, words, ir.element(b, self.target[s], I16, position))
        y = b.select(over, b.lshr(x, splat(16, I32, WIDTH)), x)
        quotient = b.fdiv(b.uitofp(y, floats), b.sitofp(freq, floats))
        q = b.fptosi(b.fsub(quotient, splat(0.25, F32, WIDTH)), of)
        rest = b.sub(y, b.mul(q, freq))
        more = b.icmp_signed(">=", rest, freq)
        q = b.select(more, b.add(q, splat(1, I32, WIDTH)), q)
        rest = b.select(more, b.sub(rest, freq), rest)
        new = b.add(b.shl(q, self.bits[s]), b.add(rest, start))
        return new, b.add(position, ir.popcount(b, over))


# ---- copies ------------------------------------------------------------------------------------
def _reverse(b: Any, params: Any, count: Any) -> None:
    """Copy `count` vectors of `REVERSED` words each, in reverse order."""
    words, out = (
        ir.pointer(b, ir.load(b, ir.element(b, params, I64, I64(_PLACE[name])), I64))
        for name in ("source", "target")
    )
    loop = ir.Loop(b, count, [])
    at = b.mul(b.sub(count, b.add(loop.index, I64(1))), I64(REVERSED))
    some = ir.load(b, ir.element(b, words, I16, at), vector(I16, REVERSED))
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


# ---- native functions: parameters, states and permutations are given by their addresses --------
@cache
def decoder(n_streams: int, contexts: bool = False, gather: bool = False) -> Native:
    """Native function ``(params, states, permutations, n_groups)`` that decodes groups.

    Of each of `n_streams` streams it goes on from states and position. Entries of tables are
    looked up by the gather instruction, or one by one; `table_lookups` knows which is faster.
    """

    def emit_decoder(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        records, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        streams = _Streams(b, records, lanes, n_streams, contexts)
        _Decoder(b, streams, orders, contexts, gather).run(n_groups)

    name = f"decode_{'context' if contexts else 'groups'}_{n_streams}"
    return Native(name + ("_gather" if gather else ""), emit_decoder, 4)


@cache
def encoder(n_streams: int, contexts: bool = False) -> Native:
    """Native function that encodes groups, the last one first: arguments as for `decoder`.

    Words come in the same order.
    """

    def emit_encoder(b: Any, params: Any, states: Any, permutations: Any, n_groups: Any) -> None:
        records, lanes, orders = (ir.pointer(b, a) for a in (params, states, permutations))
        _Encoder(b, _Streams(b, records, lanes, n_streams, contexts), orders).run(n_groups)

    return Native(f"encode_{'context' if contexts else 'groups'}_{n_streams}", emit_encoder, 4)


@cache
def reverser() -> Native:
    """Native function ``(params, n_vectors)`` that copies words in reverse order.

    A vector has `REVERSED` words.
    """

    def emit_reverser(b: Any, params: Any, n_vectors: Any) -> None:
        _reverse(b, ir.pointer(b, params), n_vectors)

    return Native("reverse_words", emit_reverser, 2)


@cache
def mapper() -> Native | None:
    """Native function ``(source, target, table, n_vectors)`` that looks bytes up in a table.

    A vector has `MAPPED` bytes. The address is 0 where that is not faster than a loop.
    """

    def emit_mapper(b: Any, source: Any, target: Any, table: Any, n_vectors: Any) -> None:
        _map_bytes(b, ir.pointer(b, source), ir.pointer(b, target), ir.pointer(b, table), n_vectors)

    return Native("map_bytes", emit_mapper, 4) if ir.BYTE_LOOKUP else None
