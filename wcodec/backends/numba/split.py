"""Words cut into planes and nibble pairs as vectors: the reverse of `merge`.

A kernel goes over the words of a segment in steps of `STEP` words, whose rows it trusts to be whole
steps wide.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final

import numpy as np
from llvmlite.ir import IntType

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import I8, I32, I64, WIDTH, splat, vector
from wcodec.backends.numba.kernels import ArrayOf, Native
from wcodec.backends.numba.kinds import KINDS, Kind

_N: Final = 4 * WIDTH  #: bytes of a vector
STEP: Final = 2 * _N  #: words

#: What a kernel has to know; addresses, and numbers.
SPLIT: Final = np.dtype(
    [
        ("source", np.int64),  # address of the words
        ("symbols", np.int64),  # address of plane 0
        ("lower", np.int64, (3,)),  # addresses of lower planes
        ("patches", np.int64),  # address of the patches
        ("row_steps", np.int64),  # steps of a row
        ("row_jump", np.int64),  # bytes from the end of a row to the next
        ("base", np.int64),  # where the window begins
        ("fill", np.int64),  # the code of words outside of it
        ("ahead", np.int64),  # how many bytes ahead cache lines are asked for
        ("n_patches", np.int64),  # how many there are: a result
        ("uncoded", np.int64),  # address of the row of `EncodingTables.uncoded`, or 0 for none
        ("none", np.int64, (4,)),  # such a row, of a table that codes all
        ("spill", np.int64, (8,)),  # room for a vector
    ]
)
Splitting = Annotated[Any, ArrayOf(SPLIT)]


class _Splitter(ir.Emitter):
    """The body of a kernel of one kind; see `KINDS`."""

    def __init__(self, b: Any, params: Any, kind: Kind, lower: bool) -> None:
        super().__init__(b, params, SPLIT)
        self.lower = lower
        self.pairs, self.word_nbytes, self.map = kind
        self.window = self.pairs and self.word_nbytes > 1
        self.base = ir.broadcast(b, b.trunc(self.param("base"), I8), _N)
        self.fill = ir.broadcast(b, b.trunc(self.param("fill"), I8), _N)
        self.patches = ir.pointer(b, self.param("patches"))
        if self.window and lower:
            named, none = self.param("uncoded"), b.ptrtoint(self.place("none"), I64)
            rows = ir.pointer(b, b.select(b.icmp_signed("==", named, I64(0)), none, named))
            self.uncoded = [
                ir.load_row(b, ir.element(b, rows, I8, I64(16 * h)), _N) for h in (0, 1)
            ]
            self.bits = ir.constant(
                vector(I8, _N), [(1 << i % 8) - 256 * (i % 8 == 7) for i in range(_N)]
            )

    def put(self, address: Any, at: Any, vectors: list[Any]) -> None:
        """Store vectors from byte `at` of an output."""
        target = ir.pointer(self.b, self.b.add(address, at))
        for i, v in enumerate(vectors):
            ir.store(self.b, v, ir.element(self.b, target, I8, I64(_N * i)))

    def step(self, source: Any, first: Any, n_patches: Any) -> Any:
        """Split `STEP` words, of which `first` is the number of the first.

        Returns the new number of patches.
        """
        b, planes = self.b, self._planes(source)
        half = b.lshr(first, I64(1))
        if not self.pairs:
            self.put(self.param("symbols"), first, planes[0])
        elif self.word_nbytes == 1:
            self.put(
                self.param("symbols"),
                half,
                [self._pack([b.lshr(v, self._constant(4)) for v in planes[0]])],
            )
            self.put(
                self.param("lower"),
                half,
                [self._pack([b.and_(v, self._constant(15)) for v in planes[0]])],
            )
        else:
            codes, outside = zip(*map(self._code, planes[0]), strict=True)
            symbols = self._pack(list(codes))
            if self.lower:
                symbols, outside = self._replace_uncoded(symbols, outside)
            self.put(self.param("symbols"), half, [symbols])
            for i, (mask, tops) in enumerate(zip(outside, planes[0], strict=True)):
                n_patches = self._patch(mask, tops, b.add(first, I64(_N * i)), n_patches)
        for p in range(1, self.word_nbytes if self.lower else 1):
            self.put(self.param("lower", p - 1), first, planes[p])
        return n_patches

    def _constant(self, value: int) -> Any:
        return splat(value - 256 if value > 127 else value, I8, _N)

    def _planes(self, source: Any) -> list[list[Any]]:
        """Two vectors of each plane of mapped words, the top one first."""
        b, n = self.b, self.word_nbytes
        loaded = [
            ir.load(b, ir.element(b, source, I8, I64(_N * i)), vector(I8, _N)) for i in range(2 * n)
        ]
        halves = [self._map(self._bytes(loaded[n * h : n * (h + 1)])[::-1]) for h in range(2)]
        return [list(plane) for plane in zip(*halves, strict=True)]

    def _bytes(self, v: list[Any]) -> list[Any]:
        """Planes of `_N` words, the lowest byte first."""
        while len(v) > 1:
            cut = [ir.unzipped(self.b, *v[i : i + 2]) for i in range(0, len(v), 2)]
            if len(v) == 2:
                return list(cut[0])
            even, odd = ([c[k] for c in cut] for k in range(2))
            (zero, two), (one, three) = ir.unzipped(self.b, *even), ir.unzipped(self.b, *odd)
            return [zero, one, two, three]
        return v

    def _map(self, p: list[Any]) -> list[Any]:
        """The word map, on bytes."""
        b, c = self.b, self._constant
        if self.map == "offset":
            return [b.xor(p[0], c(0x80)), *p[1:]]
        if self.map == "exponent 8":
            top = b.or_(b.shl(p[0], c(1)), b.lshr(p[1], c(7)))
            return [top, b.or_(b.and_(p[1], c(0x7F)), b.and_(p[0], c(0x80))), *p[2:]]
        if self.map == "identity":
            return p
        f = 7 - int(self.map[-1])  # bits of the mantissa
        exponent, sign = (
            b.shl(b.and_(p[0], c(0x7F >> f << f)), c(1)),
            b.lshr(b.and_(p[0], c(0x80)), c(7 - f)),
        )
        return [b.or_(b.or_(exponent, sign), b.and_(p[0], c((1 << f) - 1)))]

    def _pack(self, codes: list[Any]) -> Any:
        even, odd = ir.unzipped(self.b, *codes)
        return self.b.or_(even, self.b.shl(odd, self._constant(4)))

    def _code(self, tops: Any) -> tuple[Any, Any]:
        """Codes, and which words are outside the window."""
        code = self.b.sub(tops, self.base)
        outside = self.b.icmp_unsigned(">", code, self._constant(15))
        return self.b.select(outside, self.fill, code), outside

    def _is_uncoded(self, symbols: Any) -> Any:
        """Which symbols the table does not code."""
        b, of = self.b, vector(I8, _N)
        low, high = b.and_(symbols, self._constant(15)), b.lshr(symbols, self._constant(4))
        rows = [ir.lookup_nibbles(b, half, low) for half in self.uncoded]
        row = b.select(b.icmp_signed("<", symbols, ir.zero(of)), rows[1], rows[0])
        bit = ir.lookup_nibbles(b, self.bits, high)
        return b.icmp_unsigned("!=", b.and_(row, bit), ir.zero(of))

    def _replace_uncoded(self, symbols: Any, outside: tuple[Any, ...]) -> tuple[Any, Any]:
        """Pairs that the table codes, and which words get patches; most often nothing changes.

        See `wcodec.reference.planes.patch_uncoded`.
        """
        b, bits, of = self.b, IntType(_N), vector(I8, _N)
        uncoded = self._is_uncoded(symbols)
        before, some, done = (
            b.block,
            b.append_basic_block("uncoded"),
            b.append_basic_block("coded"),
        )
        b.cbranch(b.icmp_unsigned("==", b.bitcast(uncoded, bits), bits(0)), done, some)
        b.position_at_end(some)
        high = b.shl(self.fill, self._constant(4))
        one = b.or_(b.and_(symbols, self._constant(15)), high)
        other = b.or_(b.and_(symbols, self._constant(240)), self.fill)
        drops_first = b.and_(uncoded, self._is_uncoded(one))
        drops_second = b.or_(
            b.xor(drops_first, uncoded), b.and_(drops_first, self._is_uncoded(other))
        )
        new = b.select(drops_first, other, b.select(uncoded, one, symbols))
        new = b.select(b.and_(drops_first, drops_second), b.or_(high, self.fill), new)
        flags = [b.sext(d, of) for d in (drops_first, drops_second)]
        words = [b.icmp_signed("<", w, ir.zero(of)) for w in ir.zipped(b, *flags)]
        patched = [b.or_(old, w) for old, w in zip(outside, words, strict=True)]
        last = b.block
        b.branch(done)
        b.position_at_end(done)
        out = []
        for old, changed in zip((symbols, *outside), (new, *patched), strict=True):
            phi = b.phi(old.type)
            phi.add_incoming(old, before)
            phi.add_incoming(changed, last)
            out.append(phi)
        return out[0], out[1:]

    def _patch(self, outside: Any, tops: Any, first: Any, n_patches: Any) -> Any:
        """Append ``top << 24 | index`` of the words outside; most often there are none."""
        b, bits = self.b, IntType(_N)
        mask = b.bitcast(outside, bits)
        before, some, done = (
            b.block,
            b.append_basic_block("patches"),
            b.append_basic_block("patched"),
        )
        b.cbranch(b.icmp_unsigned("==", mask, bits(0)), done, some)
        b.position_at_end(some)
        ir.store(b, tops, self.place("spill"))
        count = b.zext(b.call(ir.declare(b, f"llvm.ctpop.i{_N}", bits, [bits]), [mask]), I64)
        loop = ir.Loop(b, count, [mask])
        index = b.call(
            ir.declare(b, f"llvm.cttz.i{_N}", bits, [bits, ir.I1]), [loop.values[0], ir.I1(1)]
        )
        index = b.zext(index, I64) if _N < 64 else index
        top = b.zext(b.load(ir.element(b, self.place("spill"), I8, index)), I32)
        patch = b.or_(b.shl(top, I32(24)), b.trunc(b.add(first, index), I32))
        ir.store(b, patch, ir.element(b, self.patches, I32, b.add(n_patches, loop.index)))
        loop.close([b.and_(loop.values[0], b.sub(loop.values[0], bits(1)))])
        last, total = b.block, b.add(n_patches, count)
        b.branch(done)
        b.position_at_end(done)
        out = b.phi(I64)
        out.add_incoming(n_patches, before)
        out.add_incoming(total, last)
        return out


def _emit(b: Any, params: Any, n_steps: Any, kind: Kind, lower: bool) -> None:
    """The body of the native function."""
    s = _Splitter(b, params, kind, lower)
    in_row, jump, ahead = s.param("row_steps"), s.param("row_jump"), s.param("ahead")
    loop = ir.Loop(b, n_steps, [s.param("source"), in_row, I64(0)])
    source, left, n_patches = loop.values
    for line in range(0, STEP * s.word_nbytes, 64):
        ir.prefetch_line(b, b.add(b.add(source, ahead), I64(line)), 0)
    n_patches = s.step(ir.pointer(b, source), b.mul(loop.index, I64(STEP)), n_patches)
    left = b.sub(left, I64(1))
    over = b.icmp_signed("==", left, I64(0))
    source = b.add(b.add(source, I64(STEP * s.word_nbytes)), b.select(over, jump, I64(0)))
    *_, n_patches = loop.close([source, b.select(over, in_row, left), n_patches])
    ir.store(b, n_patches, s.place("n_patches"))


@cache
def splitter(number: int, lower: bool) -> Native:
    """Native function that splits steps of words: ``(params, n_steps)``; with or without lower
    planes.

    `number` is one more than that of a kind in `KINDS`.
    """

    def emit_splitter(b: Any, params: Any, n_steps: Any) -> None:
        _emit(b, ir.pointer(b, params), n_steps, KINDS[number - 1], lower)

    return Native(f"split_{'all' if lower else 'symbols'}_{number}", emit_splitter, 2)
