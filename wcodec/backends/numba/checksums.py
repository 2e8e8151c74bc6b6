"""CRC-32 by carry-less multiplication, with ``zlib`` where the CPU has none. Spec: chapter 11.

Blocks are folded: an accumulator of 128 bits, times ``x**distance`` modulo the CRC's polynomial, is
added to the data that stands `distance` bits later (V. Gopal et al., "Fast CRC Computation for
Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009). What is left when less than a block
remains has the same CRC as all the data before, with an initial state of 0; it is finished by
table, eight bytes at a time.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from wcodec.backends.numba import ir
from wcodec.backends.numba.compiling import jit, kernel
from wcodec.backends.numba.ir import I8, I32, I64, intrinsic, vector

_POLYNOMIAL: Final = 0x104C11DB7
_LANES: Final = {"avx512": 4, "avx2": 2}.get(ir.CARRYLESS, 1)  #: of 128 bits, in a vector
_VECTORS: Final = 4
BLOCK_NBYTES: Final = 16 * _LANES * _VECTORS


def _power(n: int) -> int:
    """``x**n`` modulo the polynomial, 33 bits, reflected."""
    r = 1
    for _ in range(n):
        r <<= 1
        if r >> 32:
            r ^= _POLYNOMIAL
    return int(f"{r:033b}"[::-1], 2)


def _slices() -> NDArray[np.uint32]:
    """Tables for eight bytes at a time: ``[k, b]`` is the CRC of byte b with k zero bytes behind
    it.
    """
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
        tables[0, byte] = crc
    for k in range(1, 8):
        tables[k] = tables[k - 1] >> np.uint32(8) ^ tables[0][tables[k - 1] & np.uint32(255)]
    return tables


SLICES: Final = _slices()
LINE_NBYTES: Final = 256  #: `crc_rows` takes whole lines


def _times(a: int, b: int) -> int:
    """Product modulo the polynomial; both reflected, of 32 bits."""
    product = 0
    while a:
        if a & 0x80000000:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product


def folded(b: Any, x: Any, factors: Any, data: Any) -> Any:
    """An accumulator of lanes of 128 bits times factors, a pair for each lane, plus what stands
    there in the data.
    """
    lanes = x.type.count // 2
    if lanes > _LANES:  # more than one instruction takes
        half = x.type.count // 2
        parts = [
            [ir.shuffle(b, v, v, range(k, k + half)) for k in (0, half)] for v in (x, factors, data)
        ]
        low, high = (folded(b, *three) for three in zip(*parts, strict=True))
        return ir.shuffle(b, low, high, range(2 * half))
    of = vector(I64, 2 * lanes)
    multiply = ir.declare(
        b, f"llvm.x86.pclmulqdq{ {1: '', 2: '.256', 4: '.512'}[lanes] }", of, [of, of, I8]
    )
    return b.xor(
        b.xor(b.call(multiply, [x, factors, I8(0x00)]), b.call(multiply, [x, factors, I8(0x11)])),
        data,
    )


def factors_for(b: Any, n_lanes: int, nbytes: int) -> Any:
    """Constant factors for data that stands `nbytes` later."""
    return ir.constant(
        vector(I64, 2 * n_lanes), [_power(8 * nbytes + 32), _power(8 * nbytes - 32)] * n_lanes
    )


def _fold(b: Any, data: Any, n_blocks: Any, state: Any) -> list[Any]:
    of, factors = vector(I64, 2 * _LANES), factors_for(b, _LANES, BLOCK_NBYTES)
    accumulators = [
        ir.load(b, ir.element(b, data, I8, I64(16 * _LANES * i)), of) for i in range(_VECTORS)
    ]
    accumulators[0] = b.xor(accumulators[0], b.insert_element(ir.zero(of), state, I32(0)))
    loop = ir.Loop(b, b.sub(n_blocks, I64(1)), accumulators)
    block, sums = ir.element(b, data, I8, b.mul(b.add(loop.index, I64(1)), I64(BLOCK_NBYTES))), []
    for i, x in enumerate(loop.values):
        sums.append(
            folded(b, x, factors, ir.load(b, ir.element(b, block, I8, I64(16 * _LANES * i)), of))
        )
    return loop.close(sums)


@intrinsic
def _fold_blocks(typing: Any, data: Any, n_blocks: Any, state: Any, rest: Any) -> Any:
    """Fold `n_blocks` blocks into `rest`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, target = (
            context.make_array(signature.args[i])(context, b, args[i]).data for i in (0, 3)
        )
        for i, x in enumerate(_fold(b, source, args[1], args[2])):
            ir.store(b, x, ir.element(b, target, I8, I64(16 * _LANES * i)))
        return context.get_dummy_value()

    return types.void(data, n_blocks, state, rest), codegen


@jit
def _by_table(data: Any, slices: Any, crc: Any) -> Any:
    """Continue the state `crc` over some bytes."""
    eights = data[: data.size // 8 * 8].view(np.uint64)
    for i in range(eights.size):
        x = eights[i] ^ np.uint64(crc)
        crc = np.uint32(0)
        for k in range(8):
            crc ^= slices[7 - k, (x >> np.uint64(8 * k)) & np.uint64(255)]
    for i in range(8 * eights.size, data.size):
        crc = crc >> np.uint32(8) ^ slices[0, (crc ^ np.uint32(data[i])) & np.uint32(255)]
    return crc


@jit
def crc32_of(data: Any, start: Any, slices: Any, rest: Any) -> Any:
    """CRC-32 of some bytes behind those whose CRC is `start`."""
    crc, n_blocks = np.uint32(start) ^ np.uint32(0xFFFFFFFF), data.size // BLOCK_NBYTES
    if n_blocks > 1:
        _fold_blocks(data, n_blocks, np.int64(crc), rest)
        crc = _by_table(rest[:BLOCK_NBYTES], slices, np.uint32(0))
        data = data[n_blocks * BLOCK_NBYTES :]
    return _by_table(data, slices, crc) ^ np.uint32(0xFFFFFFFF)


@kernel
def _crc_each(
    data: Any, offsets: Any, first: Any, last: Any, start: Any, slices: Any, rest: Any, out: Any
) -> None:
    """CRC-32 of pieces `first` to `last`; `start` is that of what stands before each."""
    for k in range(first, last):
        out[k] = crc32_of(data[offsets[k] : offsets[k + 1]], start, slices, rest)


def crc32_range(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    first: int,
    last: int,
    start: int,
    out: NDArray[np.uint32],
) -> None:
    """``out[k]``: CRC-32 of ``data[offsets[k] : offsets[k + 1]]`` for k from `first` to `last`,
    each continuing `start`.
    """
    if ir.CARRYLESS:
        _crc_each(data, offsets, first, last, start, SLICES, np.empty(BLOCK_NBYTES, np.uint8), out)
        return
    view = data.data
    for k in range(first, last):
        out[k] = zlib.crc32(view[offsets[k] : offsets[k + 1]], start)


# ---- rectangles --------------------------------------------------------------------------------
# A CRC without initial state is linear: that of a matrix is the sum of those of its rectangles,
# each with zeros around it.
@intrinsic
def _multiply(typing: Any, a: Any, b_: Any) -> Any:
    """Carry-less product of two numbers of 32 bits, as eight bytes of a message."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        of = vector(I64, 2)
        pair = [b.insert_element(ir.zero(of), x, I32(0)) for x in args]
        product = b.call(ir.declare(b, "llvm.x86.pclmulqdq", of, [of, of, I8]), [*pair, I8(0)])
        return b.shl(b.extract_element(product, I32(0)), I64(1))

    return types.uint64(types.uint64, types.uint64), codegen


@jit
def _reduced(product: Any, slices: Any) -> Any:
    """A product times ``x**32``, modulo the polynomial."""
    crc = np.uint32(0)
    for k in range(8):
        crc ^= slices[7 - k, (product >> np.uint64(8 * k)) & np.uint64(255)]
    return crc


@jit
def behind_zeros(crc: Any, n: Any, slices: Any, shifts: Any) -> Any:
    """What a CRC without initial state becomes by `n` zero bytes; `n` is below 2^40.

    `shifts` are `SHIFTS`.
    """
    for i in range(5):
        digit = (n >> (8 * i)) & 255
        if digit:
            crc = _reduced(_multiply(np.uint64(crc), np.uint64(shifts[i, digit])), slices)
    return crc


def _inverse() -> int:
    """``x**-32``: the polynomial is primitive, so powers of x repeat after ``2**32 - 1``, and this
    is ``x**32`` to the ``2**32 - 2``.
    """
    power, inverse = 0x40000000, 0x80000000  # x, 1
    for _ in range(5):
        power = _times(power, power)
    for _ in range(31):
        power = _times(power, power)
        inverse = _times(inverse, power)
    return inverse


X32: Final = _power(32) >> 1  #: ``x**32``
INVERSE: Final = _inverse()


def _unreduced_shifts() -> NDArray[np.uint32]:
    """``[i, b]`` is ``x ** (8 * b * 256**i)``, what that many zero bytes do to a CRC, over
    ``x**32``, which `_reduced` brings back.
    """
    out, square = np.full((5, 256), INVERSE, np.uint64), 0x00800000  # x^8
    for i in range(5):
        for bit in range(8):
            factor, product = square, np.zeros(1 << bit, np.uint64)
            for k in range(31, -1, -1):
                product ^= (out[i, : 1 << bit] >> np.uint64(k) & np.uint64(1)) * np.uint64(factor)
                factor = factor >> 1 ^ (0xEDB88320 if factor & 1 else 0)
            out[i, 1 << bit : 2 << bit] = product
            square = _times(square, square)
    return out.astype(np.uint32)


SHIFTS: Final = _unreduced_shifts()


@intrinsic
def _fold_rows(
    typing: Any, data: Any, n_rows: Any, n_lines: Any, jump: Any, over: Any, rest: Any
) -> Any:
    """Fold `n_rows` rows of `n_lines` lines, `jump` bytes apart, into `rest`.

    `over` holds the factors between one row and the next: ``x ** (8 * n + 32)`` and ``x ** (8 * n -
    32)`` with n being ``LINE_NBYTES + jump``.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, across, target = (
            context.make_array(signature.args[i])(context, b, args[i]).data for i in (0, 4, 5)
        )
        _fold_lines(b, source, args[1], args[2], args[3], across, target)
        return context.get_dummy_value()

    return types.void(data, n_rows, n_lines, jump, over, rest), codegen


def _fold_lines(
    b: Any, source: Any, n_rows: Any, n_lines: Any, jump: Any, across: Any, target: Any
) -> None:
    of, n = vector(I64, 2 * _LANES), LINE_NBYTES // (16 * _LANES)
    two = ir.load(b, across, vector(I64, 2))
    between = ir.shuffle(b, two, two, [0, 1] * _LANES)
    rows = ir.Loop(b, n_rows, [b.ptrtoint(source, I64), *[ir.zero(of)] * n])
    lines = ir.Loop(b, n_lines, [*rows.values, between])
    at, *sums, factors = lines.values
    line = ir.pointer(b, at)
    sums = [
        folded(b, x, factors, ir.load(b, ir.element(b, line, I8, I64(16 * _LANES * i)), of))
        for i, x in enumerate(sums)
    ]
    at, *sums, _ = lines.close(
        [b.add(at, I64(LINE_NBYTES)), *sums, factors_for(b, _LANES, LINE_NBYTES)]
    )
    _, *sums = rows.close([b.add(at, jump), *sums])
    for i, x in enumerate(sums):
        ir.store(b, x, ir.element(b, target, I8, I64(16 * _LANES * i)))


@jit
def _crc_of_lanes(lanes: Any, behind: Any, slices: Any, shifts: Any) -> Any:
    return behind_zeros(_by_table(lanes, slices, np.uint32(0)), behind, slices, shifts)


@jit
def crc_rows(
    data: Any,
    at: Any,
    n_rows: Any,
    row_nbytes: Any,
    jump: Any,
    behind: Any,
    over: Any,
    slices: Any,
    shifts: Any,
    rest: Any,
) -> Any:
    """Share of a rectangle in the CRC without initial state of a matrix: rows of whole lines,
    `jump` bytes between them, `behind` bytes of the matrix behind the last one.
    """
    _fold_rows(data[at:], n_rows, row_nbytes // LINE_NBYTES, jump, over, rest)
    return _crc_of_lanes(rest[:LINE_NBYTES], behind, slices, shifts)


@kernel
def _row_factors(distances: Any, slices: Any, shifts: Any, out: Any) -> None:
    """As `factors_for`, of distances in bytes that are known at run time."""
    for i in range(distances.size):
        for k in range(2):
            out[i, k] = np.uint64(
                behind_zeros(np.uint32(X32 if k == 0 else INVERSE), distances[i], slices, shifts)
            ) << np.uint64(1)


# ---- as a part of other kernels ----------------------------------------------------------------
class Sums:
    """CRC-32s that kernels make of records and words while these are in cache: all, or only the
    records', or none.

    Parameters
    ----------
    n
        Segments.
    shape
        Rows, columns, columns of a segment, bytes of a word.
    wanted
        Whether any are.
    """

    def __init__(self, n: int, shape: tuple[int, int, int, int], wanted: bool) -> None:
        rows, cols, width, word_nbytes = shape
        self.nbytes, last = rows * cols * word_nbytes, (cols - 1) % width + 1
        self.made = wanted and bool(ir.CARRYLESS)
        self.of_words = (
            self.made
            and width * word_nbytes % LINE_NBYTES == 0
            and last * word_nbytes % LINE_NBYTES == 0
        )
        self.records = np.empty(n if self.made else 0, np.uint32)
        self.words = np.empty(n if self.of_words else 0, np.uint32)
        distances = np.array(
            [
                (cols - w) * word_nbytes + line
                for line in (LINE_NBYTES, 4 * ir.WIDTH)
                for w in (width, last)
            ],
            np.int64,
        )
        self.over = np.zeros((4, 2), np.uint64)
        if self.of_words:
            _row_factors(distances, SLICES, SHIFTS, self.over)

    def arrays(self) -> tuple[Any, ...]:
        """As kernels take them; for one thread."""
        return (
            SLICES,
            SHIFTS,
            self.over,
            np.empty(max(BLOCK_NBYTES, LINE_NBYTES), np.uint8),
            self.records,
            self.words,
        )

    def crc32(self) -> int:
        """CRC-32 of all words."""
        return int(_all_words(self.words, self.nbytes, SLICES, SHIFTS))


@kernel
def _all_words(shares: Any, nbytes: Any, slices: Any, shifts: Any) -> Any:
    """CRC-32 of a matrix of `nbytes` bytes from the shares of its rectangles."""
    crc = behind_zeros(np.uint32(0xFFFFFFFF), nbytes, slices, shifts) ^ np.uint32(0xFFFFFFFF)
    for i in range(shares.size):
        crc ^= shares[i]
    return crc


@jit
def _sum_record(sums: Any, k: Any, record: Any) -> None:
    if sums[4].size:
        sums[4][k] = crc32_of(record, np.uint32(0), sums[0], sums[3])


@jit
def _sum_words(
    sums: Any,
    k: Any,
    data: Any,
    row: Any,
    col: Any,
    height: Any,
    width: Any,
    cols: Any,
    word_nbytes: Any,
) -> None:
    if sums[5].size:
        at = (row * cols + col) * word_nbytes
        behind = data.size - at - ((height - 1) * cols + width) * word_nbytes
        over = sums[2][0 if col + width < cols else 1]
        sums[5][k] = crc_rows(
            data,
            at,
            height,
            width * word_nbytes,
            (cols - width) * word_nbytes,
            behind,
            over,
            sums[0],
            sums[1],
            sums[3],
        )


@jit
def _no_record(sums: Any, k: Any, record: Any) -> None:
    pass


@jit
def _no_words(
    sums: Any,
    k: Any,
    data: Any,
    row: Any,
    col: Any,
    height: Any,
    width: Any,
    cols: Any,
    word_nbytes: Any,
) -> None:
    pass


@jit
def _nothing(crc: Any, behind: Any, slices: Any, shifts: Any) -> Any:
    return np.uint32(0)


#: ``(crc, n, slices, shifts)``: what a CRC without initial state becomes by `n` zero bytes.
crc_behind: Final = behind_zeros if ir.CARRYLESS else _nothing
#: ``(lanes, behind, slices, shifts)``: CRC without initial state of what was folded into some
#: lanes, `behind` zero bytes later.
crc_of_lanes: Final = _crc_of_lanes if ir.CARRYLESS else _nothing
#: ``(sums, k, record)``: CRC-32 of a record, if it is wanted.
sum_record: Final = _sum_record if ir.CARRYLESS else _no_record
#: ``(sums, k, data, row, col, height, width, cols, word_nbytes)``: share of a rectangle of words in
#: the CRC-32 of them all, if wanted.
sum_words: Final = _sum_words if ir.CARRYLESS else _no_words
