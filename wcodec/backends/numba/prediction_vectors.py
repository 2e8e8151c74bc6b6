"""Prediction as vectors of bytes, for CPUs with AVX-512, AVX2 or NEON; see `prediction`.

A run of bytes is cut into vectors. What is left is done in a vector that overlaps the one before,
or, in a run of less than `LANE` bytes, one by one: nothing is read or written outside of the run
and, where the mode looks there, the row above.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import I1, I8, I16, I32, I64, vector
from wcodec.backends.numba.kernels import intrinsic
from wcodec.reference.prediction import Mode

LANE: Final = 16  #: bytes that one instruction shifts together
VECTOR: Final = 32  #: bytes of a sum along a row
BLOCK: Final = 128  #: bytes of a few vectors, where these do not wait for each other


def _pointers(context: Any, b: Any, signature: Any, args: Any) -> list[Any]:
    """Pointers of array arguments, other arguments as they are."""
    from numba.core import types

    return [
        context.make_array(t)(context, b, value).data if isinstance(t, types.Array) else value
        for t, value in zip(signature.args, args, strict=True)
    ]


class _Pieces(NamedTuple):
    """Equal pieces of a run of bytes, one after another.

    Attributes
    ----------
    size
        Bytes of a piece.
    count
        How many there are.
    start
        Where the first one starts.
    new
        None, or which bytes of a piece are new, where it overlaps others.
    """

    size: int
    count: Any
    start: Any
    new: Any


def _pieces(b: Any, n: Any, sizes: tuple[int, ...]) -> list[_Pieces]:
    """Cut a run of `n` bytes into pieces of some sizes, and what is left."""
    pieces = list[_Pieces]()
    done = I64(0)
    for size in sizes:
        count = b.udiv(b.sub(n, done), I64(size))
        pieces.append(_Pieces(size, count, done, None))
        done = b.add(done, b.mul(count, I64(size)))
    rest, fits = b.sub(n, done), b.icmp_signed(">=", n, I64(LANE))
    n_old = ir.broadcast(b, b.trunc(b.sub(I64(LANE), rest), I8), LANE)
    new = b.icmp_unsigned(">=", ir.constant(vector(I8, LANE), list(range(LANE))), n_old)
    overlaps = b.zext(b.and_(fits, b.icmp_signed(">", rest, I64(0))), I64)
    pieces.append(_Pieces(LANE, overlaps, b.sub(n, I64(LANE)), new))
    pieces.append(_Pieces(1, b.select(fits, I64(0), rest), done, None))
    return pieces


# ---- residuals ---------------------------------------------------------------------------------
def _residual(b: Any, mode: int, here: Any, width: Any, n: int) -> Any:
    """Residuals of `n` bytes that have all neighbours that the mode looks at."""

    def byte(back: Any) -> Any:
        return ir.load(b, ir.element(b, here, I8, b.neg(back)), vector(I8, n))

    one, x = I64(1), byte(I64(0))
    if mode == Mode.LEFT:
        return b.sub(x, byte(one))
    if mode == Mode.TOP:
        return b.sub(x, byte(width))
    left, top = byte(one), byte(width)
    if mode == Mode.PLANAR:
        return b.sub(b.sub(x, left), b.sub(top, byte(b.add(width, one))))
    half = b.lshr(b.xor(left, top), ir.splat(1, I8, n))
    # the mean without a ninth bit: equal bits, and half of the others
    return b.sub(x, b.add(b.and_(left, top), half))


def residuals(mode: int) -> Any:
    """Intrinsic that makes residuals of a mode."""

    def residuals_of_mode(
        typing: Any, tile: Any, out: Any, first: Any, last: Any, width: Any
    ) -> Any:
        """Residuals of the bytes from `first` to `last`."""

        from numba.core import types

        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            data, to, begin, end, cols = _pointers(context, b, signature, args)
            for size, count, start, _ in _pieces(b, b.sub(end, begin), (BLOCK, VECTOR, LANE)):
                loop = ir.Loop(b, count, [])
                at = b.add(b.add(begin, start), b.mul(loop.index, I64(size)))
                ir.store(
                    b,
                    _residual(b, mode, ir.element(b, data, I8, at), cols, size),
                    ir.element(b, to, I8, at),
                )
                loop.close([])
            return context.get_dummy_value()

        return types.void(tile, out, types.int64, types.int64, types.int64), codegen

    return intrinsic(residuals_of_mode)


# ---- sums along a row --------------------------------------------------------------------------
def _moved(b: Any, x: Any, k: int) -> Any:
    """Each lane of a vector of bytes moved up by `k`, zeros below it."""
    n = x.type.count
    return ir.shuffle(b, x, ir.zero(x.type), [i - k if i % LANE >= k else n for i in range(n)])


def _sums(b: Any, x: Any) -> tuple[Any, Any]:
    """Sums of the first, the first two, ... bytes of a vector, and the sum of all in every byte."""
    n = x.type.count
    for k in (1, 2, 4, 8):
        if k < n:
            x = b.add(x, _moved(b, x, k))
    last = ir.shuffle(b, x, x, [min(i | LANE - 1, n - 1) for i in range(n)])
    if n <= LANE:
        return x, last
    swapped = ir.shuffle(b, last, last, [i ^ LANE for i in range(n)])
    below = ir.shuffle(b, ir.zero(x.type), swapped, [i if i < LANE else n + i for i in range(n)])
    return b.add(x, below), b.add(last, swapped)


def _load_if(b: Any, count: Any, place: Any) -> Any:
    """A lane of bytes if `count` is 1, zeros without a look at the place if it is 0."""
    loop = ir.Loop(b, count, [ir.zero(vector(I8, LANE))])
    return loop.close([ir.load(b, place, vector(I8, LANE))])[0]


def _sum_pieces(b: Any, row: Any, pieces: list[_Pieces], carry: Any) -> None:
    """Only one addition of a vector waits for the vector before.

    The last bytes are loaded before a sum overwrites some.
    """
    last = None
    for _, count, start, new in pieces:
        if new is not None:
            last = _load_if(b, count, ir.element(b, row, I8, start))
    for size, count, start, new in pieces:
        loop = ir.Loop(b, count, [ir.broadcast(b, carry, size)])
        here = ir.element(b, row, I8, b.add(start, b.mul(loop.index, I64(size))))
        x = ir.load(b, here, vector(I8, size))
        sums, total = _sums(b, x if new is None else b.select(new, last, ir.zero(x.type)))
        sums = b.add(sums, loop.values[0])
        ir.store(b, sums if new is None else b.select(new, sums, x), here)
        carry = b.extract_element(loop.close([b.add(loop.values[0], total)])[0], I32(0))


def sum_along(whole: bool) -> Any:
    """Intrinsic that sums along a row; if `whole`, the row is whole vectors of `LANE` bytes."""

    def sum_row(typing: Any, tile: Any, at: Any, width: Any, carry: Any) -> Any:
        """Each of `width` bytes at `at` becomes the sum of `carry`, those before it, and itself."""

        from numba.core import types

        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            data, place, n, first = _pointers(context, b, signature, args)
            pieces = _pieces(b, n, (VECTOR, LANE))
            _sum_pieces(b, ir.element(b, data, I8, place), pieces[:-2] if whole else pieces, first)
            return context.get_dummy_value()

        return types.void(tile, types.int64, types.int64, types.uint8), codegen

    return intrinsic(sum_row)


# ---- sums down the columns ---------------------------------------------------------------------
def _sum_columns(b: Any, column: Any, height: Any, width: Any, size: int, new: Any) -> None:
    """Sums of `size` columns, which stay in registers from row to row."""
    loop = ir.Loop(b, height, [ir.zero(vector(I8, size))])
    here = ir.element(b, column, I8, b.mul(loop.index, width))
    x = ir.load(b, here, vector(I8, size))
    sums = b.add(loop.values[0], x)
    ir.store(b, sums if new is None else b.select(new, sums, x), here)
    loop.close([sums])


@intrinsic
def sum_down(typing: Any, tile: Any, height: Any, width: Any) -> Any:
    """Each byte of a tile becomes the sum of those above it and itself."""

    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        data, rows, cols = _pointers(context, b, signature, args)
        for size, count, start, new in _pieces(b, cols, (BLOCK, VECTOR, LANE)):
            loop = ir.Loop(b, count, [])
            column = ir.element(b, data, I8, b.add(start, b.mul(loop.index, I64(size))))
            _sum_columns(b, column, rows, cols, size, new)
            loop.close([])
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64), codegen


# ---- the inverse of AVG ------------------------------------------------------------------------
# A byte needs the one to its left and the one above it. A vector holds a byte of each of 16 rows,
# each row a column later than the one above it: then the bytes on the left are the vector before,
# and those above are the same, moved up by one. The first of these rows is known; residuals that
# lead to it take its place. All bytes are complements ``~x``, for the mean that CPUs compute is
# rounded up: ``~(residual + (left + top >> 1)) == (~left + ~top + 1 >> 1) - residual``.
def _mean(b: Any, x: Any, y: Any) -> Any:
    """``x + y + 1 >> 1`` in 9 bits: one instruction."""
    wide = vector(I16, x.type.count)
    total = b.add(b.add(b.zext(x, wide), b.zext(y, wide)), ir.splat(1, I16, x.type.count))
    return b.trunc(b.lshr(total, ir.splat(1, I16, x.type.count)), x.type)


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """Columns of 16 x 16 bytes; of each lane by itself where vectors have several."""
    n, half = rows[0].type.count, LANE // 2
    low = [k for lane in range(0, n, LANE) for i in range(lane, lane + half) for k in (i, n + i)]
    for _ in range(4):
        pairs = list(zip(rows[:half], rows[half:], strict=True))
        rows = [ir.shuffle(b, x, y, [k + m for k in low]) for x, y in pairs for m in (0, half)]
    return rows


def _lane(b: Any, x: Any, lane: int) -> Any:
    return ir.shuffle(b, x, x, range(LANE * lane, LANE * (lane + 1)))


def _ascending(b: Any, columns: list[Any], x: Any, starts: bool, n_done: Any) -> list[Any]:
    """What `x` becomes at each of 16 columns of residuals.

    Where rows start, a row's first byte has the one above it on both sides: so the first column is
    TOP. `n_done` columns, if not None, are passed over.
    """
    out = []
    for j, column in enumerate(columns):
        above, left = _moved(b, x, 1), x
        if starts:
            left = b.select(
                ir.constant(vector(I1, LANE), [r >= max(j, 1) for r in range(LANE)]), above, x
            )
        new = b.sub(_mean(b, left, above), column)
        x = new if n_done is None else b.select(b.icmp_signed("<=", n_done, I64(j)), new, x)
        out.append(x)
    return out


def _wave(
    b: Any, here: list[Any], x: Any, size: int, starts: bool = False, n_done: Any = None
) -> tuple[list[Any], list[Any], Any]:
    """A block of 16 rows by `size` columns, of which the first row is known.

    Returns its rows, the new ones, and the last `x`.
    """
    of, parts = vector(I8, size), []
    old = [ir.load(b, p, of) for p in here]
    known = b.not_(old[0])
    if starts:
        before, x = (
            ir.shuffle(b, known, known, [0, *range(LANE - 1)]),
            ir.shuffle(b, known, known, [0] * LANE),
        )
    else:
        before = b.not_(ir.load(b, ir.element(b, here[0], I8, I64(-1)), of))
    columns = _transposed(b, [b.sub(_mean(b, before, ir.zero(of)), known), *old[1:]])
    for lane in range(size // LANE):
        parts.append(_ascending(b, [_lane(b, c, lane) for c in columns], x, starts, n_done))
        x = parts[-1][-1]
    if size > LANE:
        parts[0] = [ir.shuffle(b, low, high, range(size)) for low, high in zip(*parts, strict=True)]
    return old, [b.not_(row) for row in _transposed(b, parts[0])], x


def _store(b: Any, here: list[Any], rows: list[Any]) -> None:
    """The last row first: missing rows are overwritten by the one that stands in for them, and old
    bytes by new ones.
    """
    for p, row in reversed(list(zip(here[1:], rows[1:], strict=True))):
        ir.store(b, row, p)


def _first_block(b: Any, places: list[Any]) -> Any:
    """Columns -r to 16 - r of each row r: those below 0 are the row's before it, and stay."""
    old, new, x = _wave(b, places, None, LANE, starts=True)
    masks = [ir.constant(vector(I1, LANE), [i >= r for i in range(LANE)]) for r in range(LANE)]
    _store(b, places, [b.select(mask, y, z) for mask, y, z in zip(masks, new, old, strict=True)])
    return x


def _whole_blocks(b: Any, places: list[Any], first: Any, count: Any, size: int, x: Any) -> Any:
    """Blocks that lie within all rows, from column `first` of the first row on."""
    loop = ir.Loop(b, count, [x])
    column = b.add(first, b.mul(loop.index, I64(size)))
    here = [ir.element(b, p, I8, column) for p in places]
    _, new, x = _wave(b, here, loop.values[0], size)
    _store(b, here, new)
    return loop.close([x])[0]


def _last_blocks(b: Any, places: list[Any], first: Any, n: Any, width: Any, x: Any) -> None:
    """Up to two blocks that reach beyond rows, into the next ones, of which they change nothing;
    none beyond the last row.

    The last one ends where the last row does, and begins where the block before has been.
    """
    end = b.add(width, n)
    loop = ir.Loop(b, b.udiv(b.add(b.sub(end, first), I64(LANE - 1)), I64(LANE)), [x])
    due, latest = b.add(first, b.mul(loop.index, I64(LANE))), b.sub(end, I64(LANE))
    column = b.select(b.icmp_signed("<", due, latest), due, latest)
    here, n_done = [ir.element(b, p, I8, column) for p in places], b.sub(due, column)
    old, new, x = _wave(b, here, loop.values[0], LANE, n_done=n_done)
    numbers, rows = ir.constant(vector(I8, LANE), list(range(LANE))), []
    fresh = b.icmp_signed(">=", numbers, ir.broadcast(b, b.trunc(n_done, I8), LANE))
    for r in range(LANE):
        left = b.add(b.sub(width, column), I64(r))
        left = b.trunc(b.select(b.icmp_signed("<", left, I64(LANE)), left, I64(LANE)), I8)
        inside = b.icmp_signed("<", numbers, ir.broadcast(b, left, LANE))
        rows.append(b.select(b.and_(fresh, inside), new[r], old[r]))
    _store(b, here, rows)
    loop.close([x])


@intrinsic
def average_rows(typing: Any, tile: Any, top: Any, n_rows: Any, width: Any) -> Any:
    """The rows below the one at `top`, from 1 to 15, of at least 16 bytes.

    If there are less than 15, the last one stands in for the missing ones.
    """

    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        data, first, n, w = _pointers(context, b, signature, args)
        places = []
        for r in range(LANE):
            row = b.select(b.icmp_signed("<", n, I64(r)), n, I64(r))
            places.append(ir.element(b, data, I8, b.add(first, b.mul(row, b.sub(w, I64(1))))))
        x, blocks = _first_block(b, places), b.sub(b.udiv(w, I64(LANE)), I64(1))
        pairs, done = b.udiv(blocks, I64(2)), b.mul(b.add(blocks, I64(1)), I64(LANE))
        x = _whole_blocks(b, places, I64(LANE), pairs, 2 * LANE, x)
        x = _whole_blocks(b, places, b.sub(done, I64(LANE)), b.urem(blocks, I64(2)), LANE, x)
        _last_blocks(b, places, done, n, w, x)
        return context.get_dummy_value()

    return types.void(tile, types.int64, types.int64, types.int64), codegen
