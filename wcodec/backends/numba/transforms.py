"""Transforms of tiles, 8x8 blocks side by side in vectors of int16. Spec: chapter 8.

A value stands in the high byte of its 16 bits, with zeros below it. So sums wrap as they must,
modulo 256, and what a lifting step adds is one instruction, ``(a * b + 2^14) >> 15``, and a shift.
A vector holds a row of some blocks; a transposed one, eight lanes by eight, a column of each.

The bytes after the last row of a tile are read, and written as they were, up to `LANES` of them:
the caller has them there.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import I8, I16, I64, VARIANT, splat, vector
from wcodec.backends.numba.kernels import Native
from wcodec.reference.transforms import FRACTION, ORDER, SIZE, Transform, steps

#: bytes of a row that are transformed together
LANES: Final = {"avx512": 32, "avx2": 16, "neon": 8, "plain": 8}[VARIANT]
_BYTES: Final = vector(I8, LANES)
_VALUES: Final = vector(I16, LANES)
#: ``(a * b + 2^14) >> 15``
_MULTIPLY: Final = {
    "avx512": "llvm.x86.avx512.pmul.hr.sw.512",
    "avx2": "llvm.x86.avx2.pmul.hr.sw",
    "neon": "llvm.aarch64.neon.sqrdmulh.v8i16",
}


# ---- one dimension -----------------------------------------------------------------------------
def _product(b: Any, y: Any, coefficient: int) -> Any:
    """What a lifting step adds."""
    if coefficient == -1 << FRACTION:
        return b.neg(y)
    if VARIANT in _MULTIPLY:
        rounded = b.call(
            ir.declare(b, _MULTIPLY[VARIANT], _VALUES, [_VALUES] * 2),
            [y, splat(coefficient, I16, LANES)],
        )
    else:
        exact = b.mul(b.ashr(y, splat(8, I16, LANES)), splat(coefficient, I16, LANES))
        rounded = b.ashr(
            b.add(exact, splat(1 << FRACTION - 1, I16, LANES)), splat(FRACTION, I16, LANES)
        )
    return b.shl(rounded, splat(8, I16, LANES))


def _forward(b: Any, rows: list[Any], transform: int) -> list[Any]:
    y = list(rows)
    for target, source, coefficient in steps(transform):
        y[target] = b.add(y[target], _product(b, y[source], coefficient))
    return [y[k] for k in ORDER[transform]]


def _inverse(b: Any, rows: list[Any], transform: int) -> list[Any]:
    y = [rows[ORDER[transform].index(i)] for i in range(SIZE)]
    for target, source, coefficient in reversed(steps(transform)):
        y[target] = b.sub(y[target], _product(b, y[source], coefficient))
    return y


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """Columns of 8 x 8 values, of each block by itself."""
    half = SIZE // 2
    low = [
        k
        for block in range(0, LANES, SIZE)
        for i in range(block, block + half)
        for k in (i, LANES + i)
    ]
    for _ in range(3):
        pairs = list(zip(rows[:half], rows[half:], strict=True))
        rows = [ir.shuffle(b, x, y, [k + m for k in low]) for x, y in pairs for m in (0, half)]
    return rows


# ---- a tile ------------------------------------------------------------------------------------
class _Tile:
    """The body of a kernel, of one transform and direction."""

    def __init__(self, b: Any, transform: int, inverse: bool, centre: Any) -> None:
        self.b, self.transform, self.inverse = b, transform, inverse
        self.centre = ir.broadcast(b, b.shl(b.trunc(centre, I16), I16(8)), LANES)

    def _along(self, rows: list[Any], lanes: Any) -> list[Any]:
        """Transform rows, in the blocks of some lanes: all if that is None."""
        step = _inverse if self.inverse else _forward
        new = _transposed(self.b, step(self.b, _transposed(self.b, rows), self.transform))
        return (
            new
            if lanes is None
            else [self.b.select(lanes, x, y) for x, y in zip(new, rows, strict=True)]
        )

    def _down(self, rows: list[Any], whole: Any) -> list[Any]:
        """Transform columns, if there are eight rows."""
        new = (_inverse if self.inverse else _forward)(self.b, rows, self.transform)
        return (
            new
            if whole is None
            else [self.b.select(whole, x, y) for x, y in zip(new, rows, strict=True)]
        )

    def strip(self, places: list[Any], edge: tuple[Any, Any, Any] | None = None) -> None:
        """Transform `LANES` bytes of eight rows; at an edge: lanes that are there, those of whole
        blocks, whether eight rows are there.

        All is loaded before anything is stored. Rows are stored in order: what one stores after
        its end, the next one makes right.
        """
        b, eight = self.b, splat(8, I16, LANES)
        old = [ir.load(b, p, _BYTES) for p in places]
        rows = [b.shl(b.zext(x, _VALUES), eight) for x in old]
        there, lanes, whole = edge or (None, None, None)
        if self.inverse:
            rows = [b.add(x, self.centre) for x in self._along(self._down(rows, whole), lanes)]
        else:
            rows = self._down(self._along([b.sub(x, self.centre) for x in rows], lanes), whole)
        for p, x, y in zip(places, rows, old, strict=True):
            new = b.trunc(b.lshr(x, eight), _BYTES)
            ir.store(b, new if there is None else b.select(there, new, y), p)


def _first(b: Any, n: Any) -> Any:
    """Mask of the first `n` lanes."""
    most = I64(LANES)
    few = b.trunc(b.select(b.icmp_signed("<", n, most), n, most), I8)
    return b.icmp_signed("<", ir.constant(_BYTES, list(range(LANES))), ir.broadcast(b, few, LANES))


def _emit(
    b: Any, data: Any, height: Any, width: Any, centre: Any, transform: int, inverse: bool
) -> None:
    """Strips of eight rows from left to right; if there are less than eight, the last one stands in
    for the missing ones.
    """
    tile, lanes, one = _Tile(b, transform, inverse, centre), I64(LANES), I64(1)
    strips = ir.Loop(b, b.sdiv(b.add(height, I64(SIZE - 1)), I64(SIZE)), [])
    top = b.mul(strips.index, I64(SIZE))
    left = b.sub(height, top)
    whole = b.icmp_signed(">=", left, I64(SIZE))
    last = b.select(whole, I64(SIZE - 1), b.sub(left, one))
    rows = []
    for r in range(SIZE):
        row = b.select(b.icmp_signed("<", last, I64(r)), last, I64(r))
        rows.append(ir.element(b, ir.pointer(b, data), I8, b.mul(b.add(top, row), width)))
    n_full = b.select(whole, b.sdiv(width, lanes), I64(0))
    full = ir.Loop(b, n_full, [])
    tile.strip([ir.element(b, row, I8, b.mul(full.index, lanes)) for row in rows])
    full.close([])
    done = b.mul(n_full, lanes)
    rest = ir.Loop(b, b.sdiv(b.add(b.sub(width, done), I64(LANES - 1)), lanes), [])
    column = b.add(done, b.mul(rest.index, lanes))
    there, blocks = (_first(b, b.sub(end, column)) for end in (width, b.and_(width, I64(-SIZE))))
    tile.strip([ir.element(b, row, I8, column) for row in rows], (there, blocks, whole))
    rest.close([])
    strips.close([])


@cache
def transformer(transform: int, inverse: bool) -> Native:
    """Native function that transforms a tile in place: ``(tile, height, width, centre)``.

    `centre` is what the prediction in front of the transform says of every byte, if it says the
    same of all, else 0.
    """

    def emit(b: Any, tile: Any, height: Any, width: Any, centre: Any) -> None:
        _emit(b, tile, height, width, centre, transform, inverse)

    return Native(
        f"{'inverse' if inverse else 'forward'}_{Transform(transform).name.lower()}", emit, 4
    )
