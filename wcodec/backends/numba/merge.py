"""Planes merged into words as vectors: the reverse of `split`.

Symbols come a few groups at a time out of the decoder, while they are in the first cache; lower
planes from wherever they are. Words can be folded into their CRC-32 before they are stored.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final

import numpy as np

from wcodec.backends.numba import ir
from wcodec.backends.numba.crc32 import factors_for, folded
from wcodec.backends.numba.ir import I8, I16, I64, WIDTH, splat, vector
from wcodec.backends.numba.kernels import ArrayOf, Native
from wcodec.backends.numba.kinds import KINDS, Kind
from wcodec.backends.numba.rans_vectors import VECTORS
from wcodec.reference.rans import GROUP

_N: Final = 4 * WIDTH  #: bytes of a vector
LANES_NBYTES: Final = _N  #: of what is folded

#: What a kernel has to know; addresses, and numbers. It brings `symbols`, `target`, `lower` and
#: `left` up to date.
MERGE: Final = np.dtype(
    [
        ("symbols", np.int64),  # address of the symbols
        ("target", np.int64),  # address of where words go
        ("lower", np.int64, (3,)),  # addresses of lower planes
        ("lanes", np.int64),  # address of what has been folded
        ("row_factors", np.int64),  # address of the factors from the end of a row to the next
        ("row_groups", np.int64),  # groups of a row
        ("row_jump", np.int64),  # bytes from the end of a row to the next
        ("left", np.int64),  # groups that are left of this row
        ("base", np.int64),  # where the window begins
        ("ahead", np.int64),  # how many bytes ahead of the stores cache lines are asked for
        ("native", np.int64),  # address of the kernel
        ("streaming", np.int64),  # address of the one that stores past the caches, or 0
    ]
)
Merges = Annotated[Any, ArrayOf(MERGE)]
AHEAD_NBYTES: Final = 1024  #: how far ahead of the loads cache lines are asked for
ALIGNED: Final = 16  #: what stores past the caches need


class _Merger(ir.Emitter):
    """The body of a kernel of one kind; see `KINDS`."""

    def __init__(self, b: Any, params: Any, kind: Kind, crc: bool, streaming: bool) -> None:
        super().__init__(b, params, MERGE)
        self.crc, self.streaming = crc, streaming
        self.pairs, self.word_nbytes, self.map = kind
        self.n_lower = kind.n_lower
        self.base = ir.broadcast(b, b.trunc(self.param("base"), I8), _N)
        if crc:
            two = self.load(self.param("row_factors"), 0, vector(I64, 2))
            self.between = ir.shuffle(b, two, two, [0, 1] * (_N // 16))

    def load(self, address: Any, offset: int, of: Any) -> Any:
        """Load from an address."""
        return ir.load(self.b, ir.element(self.b, ir.pointer(self.b, address), I8, I64(offset)), of)

    def run(self, n_groups: Any) -> None:
        """Merge groups of symbols."""
        b = self.b
        kept = [("symbols", 0), ("target", 0), ("left", 0)]
        kept += [("lower", i) for i in range(self.n_lower)]
        lanes = [self.load(self.param("lanes"), 0, vector(I64, _N // 8))] if self.crc else []
        jump, in_row = self.param("row_jump"), self.param("row_groups")
        ahead = self.param("ahead")
        loop = ir.Loop(b, n_groups, [*(self.param(*place) for place in kept), *lanes])
        symbols, target, left, *lower = loop.values[: len(kept)]
        words, read = self._words(symbols, lower)
        to, nbytes = ir.pointer(b, target), _N * len(words)
        store = ir.stream if self.streaming else ir.store
        for i, some in enumerate(words):
            store(b, some, ir.element(b, to, I8, I64(_N * i)))
        new_lanes = self._fold(loop.values[len(kept) :], words, b.icmp_signed("==", left, in_row))
        for line in range(0, 0 if self.streaming else nbytes, 64):
            ir.prefetch_line(b, b.add(b.add(target, ahead), I64(line)))
        for source in lower:
            for line in range(0, read, 64):
                ir.prefetch_line(b, b.add(source, I64(AHEAD_NBYTES + line)), 0)
        left = b.sub(left, I64(1))
        over = b.icmp_signed("==", left, I64(0))
        target = b.add(b.add(target, I64(nbytes)), b.select(over, jump, I64(0)))
        following = [
            b.add(symbols, I64(GROUP)),
            target,
            b.select(over, in_row, left),
            *(b.add(source, I64(read)) for source in lower),
        ]
        out = loop.close([*following, *new_lanes])
        for place, value in zip(kept, out, strict=False):
            ir.store(b, value, self.place(*place))
        for value in out[len(kept) :]:
            ir.store(b, value, ir.pointer(b, self.param("lanes")))

    def _fold(self, lanes: list[Any], words: list[Any], first: Any) -> list[Any]:
        """Fold the words of a group, the `first` of a row or not.

        Only the last step waits for the group before.
        """
        for x in lanes:
            b, n = self.b, len(words)
            *others, sums = [b.bitcast(some, x.type) for some in words]
            for i, some in enumerate(others):
                sums = folded(b, some, factors_for(b, _N // 16, _N * (n - 1 - i)), sums)
            inside = factors_for(b, _N // 16, _N * n)
            return [folded(b, x, b.select(first, self.between, inside), sums)]
        return []

    def _words(self, source: Any, lower: list[Any]) -> tuple[list[Any], int]:
        """Vectors of a group's words, and how many bytes of each lower plane they take."""
        words, read = [], 0
        for v in range(VECTORS):
            for tops in self._tops(self.load(source, _N * v, vector(I8, _N)), lower, read):
                planes = [tops]
                if self.word_nbytes > 1:
                    planes += [self._bytes(at, read) for at in lower]
                    read += _N
                words += self._merge(planes)
            if self.word_nbytes == 1:
                read += _N
        return words, read

    def _bytes(self, at: Any, offset: int) -> Any:
        return self.load(at, offset, vector(I8, _N))

    def _constant(self, value: int) -> Any:
        return splat(value - 256 if value > 127 else value, I8, _N)

    def _tops(self, symbols: Any, lower: list[Any], read: int) -> list[Any]:
        """Top bytes of mapped words, in order."""
        b, low, high, four = self.b, self._constant(0x0F), self._constant(0xF0), self._constant(4)
        if not self.pairs:
            return [symbols]
        if self.word_nbytes > 1:
            codes = ir.zipped(b, b.and_(symbols, low), b.lshr(symbols, four))
            return [b.add(c, self.base) for c in codes]
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
        halves, out = vector(I16, _N // 2), []
        for low, top in zip(ir.zipped(b, p[3], p[2]), high, strict=True):
            out += [
                b.bitcast(w, vector(I8, _N))
                for w in ir.zipped(b, b.bitcast(low, halves), b.bitcast(top, halves))
            ]
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


@cache
def merger(number: int, crc: bool, streaming: bool = False) -> Native:
    """Native function that merges groups of symbols with lower planes: ``(params, n_groups)``; with
    or without the CRC-32.

    `number` is one more than that of a kind in `KINDS`. `streaming` ones store past the caches;
    targets and jumps are multiples of `ALIGNED`.
    """

    def emit_merger(b: Any, params: Any, n_groups: Any) -> None:
        _Merger(b, ir.pointer(b, params), KINDS[number - 1], crc, streaming).run(n_groups)

    name = f"merge_{number}_crc" if crc else f"merge_{number}"
    return Native(f"stream_{name}" if streaming else name, emit_merger, 2)
