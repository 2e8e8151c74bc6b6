"""Words cut into byte planes, and merged again, for words of any size. Spec: chapter 6.

Nothing else in the plain kernels depends on the size of words: they call these by address, and are
compiled once for all sizes. LLVM makes vectors of the loops.

A word map is five uint64: the bits that move up by one, those that stay, where the sign goes and
how far down that is, and the bits to flip.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite.ir import IntType

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import I8, I64
from wcodec.backends.numba.kernels import Native


def _map_of(b: Any, address: Any, word: Any) -> list[Any]:
    """Parameters of a word map, as words: `up`, `stay`, `sign`, `flip`, `down`."""
    columns = [
        ir.load(b, ir.element(b, ir.pointer(b, address), I64, I64(i)), I64) for i in range(5)
    ]
    return [b.trunc(c, word) if word.width < 64 else c for c in columns]


def _planes(b: Any, addresses: Any, numbers: range, at: Any) -> list[Any]:
    """Pointers to byte `at` of some planes, whose addresses stand in an array."""
    array = ir.pointer(b, addresses)
    return [
        ir.pointer(b, b.add(ir.load(b, ir.element(b, array, I64, I64(p)), I64), at))
        for p in numbers
    ]


@cache
def splitter(word_nbytes: int) -> Native:
    """Native function ``(words, planes, at, n, word_map)`` that cuts `n` words into bytes, from
    byte `at` of each plane on.

    All are addresses but `at` and `n`: of the words, of the addresses of the planes, the top one
    first, of the word map.
    """
    word = IntType(8 * word_nbytes)

    def emit_splitter(b: Any, words: Any, planes: Any, at: Any, n: Any, word_map: Any) -> None:
        up, stay, sign, flip, down = _map_of(b, word_map, word)
        # two planes at a time: LLVM looks at few arrays, whether they overlap
        for p in range(0, word_nbytes, 2):
            numbers = range(p, min(p + 2, word_nbytes))
            targets, loop = _planes(b, planes, numbers, at), ir.Loop(b, n, [])
            w = b.xor(ir.load(b, ir.element(b, ir.pointer(b, words), word, loop.index), word), flip)
            w = b.or_(
                b.or_(b.shl(b.and_(w, up), word(1)), b.and_(w, stay)), b.and_(b.lshr(w, down), sign)
            )
            for k, target in zip(numbers, targets, strict=True):
                byte = b.lshr(w, word(8 * (word_nbytes - 1 - k)))
                ir.store(
                    b,
                    b.trunc(byte, I8) if word_nbytes > 1 else byte,
                    ir.element(b, target, I8, loop.index),
                )
            loop.close([])

    return Native(f"split_words_{word_nbytes}", emit_splitter, 5)


@cache
def merger(word_nbytes: int) -> Native:
    """Inverse of `splitter`, with the same parameters."""
    word = IntType(8 * word_nbytes)

    def emit_merger(b: Any, words: Any, planes: Any, at: Any, n: Any, word_map: Any) -> None:
        up, stay, sign, flip, down = _map_of(b, word_map, word)
        sources, loop = _planes(b, planes, range(word_nbytes), at), ir.Loop(b, n, [])
        w = word(0)
        for source in sources:
            byte = ir.load(b, ir.element(b, source, I8, loop.index), I8)
            w = b.or_(b.shl(w, word(8)), b.zext(byte, word)) if word_nbytes > 1 else byte
        w = b.or_(
            b.or_(b.and_(b.lshr(w, word(1)), up), b.and_(w, stay)), b.shl(b.and_(w, sign), down)
        )
        ir.store(b, b.xor(w, flip), ir.element(b, ir.pointer(b, words), word, loop.index))
        loop.close([])

    return Native(f"merge_words_{word_nbytes}", emit_merger, 5)
