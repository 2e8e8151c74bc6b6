"""CRC-32s of records and matrices, made while segments are coded. Spec: chapter 11.

A CRC without initial state is linear: that of a matrix is the sum of those of its rectangles, each
with zeros around it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.numba import ir
from wcodec.backends.numba.crc32 import (
    BLOCK_NBYTES,
    LANES,
    REFLECTED,
    SLICES,
    by_table,
    carryless_product,
    crc32_of,
    factors_for,
    folded,
    power_of_x,
    times,
)
from wcodec.backends.numba.ir import I8, I32, I64, vector
from wcodec.backends.numba.kernels import (
    Bytes,
    Int,
    Ints,
    Packed,
    UInt,
    UInts32,
    UInts32x2,
    UInts64x2,
    UInts64x3,
    intrinsic,
    jit,
    kernel,
)
from wcodec.reference.rans import GROUP

LINE_NBYTES: Final = 256  #: rows of a rectangle are whole lines


# ---- rectangles --------------------------------------------------------------------------------
@intrinsic
def _multiply(typing: Any, a: Any, b_: Any) -> Any:
    """Carry-less product of two numbers of 32 bits, as eight bytes of a message."""

    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        of = vector(I64, 2)
        x, y = (b.insert_element(ir.zero(of), number, I32(0)) for number in args)
        return b.shl(b.extract_element(carryless_product(b, x, y, 0), I32(0)), I64(1))

    return types.uint64(types.uint64, types.uint64), codegen


@jit
def _reduced(product: Any, slices: Any) -> Any:
    """A product times ``x**32``, modulo the polynomial."""
    crc = np.uint32(0)
    for k in range(8):
        crc ^= slices[7 - k, (product >> np.uint64(8 * k)) & np.uint64(255)]
    return crc


@jit
def after_zeros(crc: Any, n: Any, slices: Any, shifts: Any) -> Any:
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
        power = times(power, power)
    for _ in range(31):
        power = times(power, power)
        inverse = times(inverse, power)
    return inverse


X32: Final = power_of_x(32) >> 1  #: ``x**32``
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
                factor = factor >> 1 ^ (REFLECTED if factor & 1 else 0)
            out[i, 1 << bit : 2 << bit] = product
            square = times(square, square)
    return out.astype(np.uint32)


SHIFTS: Final = _unreduced_shifts()


@intrinsic
def _fold_rows(
    typing: Any, data: Any, n_rows: Any, n_lines: Any, jump: Any, factors: Any, rest: Any
) -> Any:
    """Fold `n_rows` rows of `n_lines` lines, `jump` bytes apart, into `rest`.

    `factors` are those between one row and the next: ``x ** (8 * n + 32)`` and
    ``x ** (8 * n - 32)`` with n being ``LINE_NBYTES + jump``.
    """

    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, across, target = (
            context.make_array(signature.args[i])(context, b, args[i]).data for i in (0, 4, 5)
        )
        _fold_lines(b, source, args[1], args[2], args[3], across, target)
        return context.get_dummy_value()

    return types.void(data, n_rows, n_lines, jump, factors, rest), codegen


def _fold_lines(
    b: Any, source: Any, n_rows: Any, n_lines: Any, jump: Any, across: Any, target: Any
) -> None:
    of, n = vector(I64, 2 * LANES), LINE_NBYTES // (16 * LANES)
    two = ir.load(b, across, vector(I64, 2))
    between = ir.shuffle(b, two, two, [0, 1] * LANES)
    rows = ir.Loop(b, n_rows, [b.ptrtoint(source, I64), *[ir.zero(of)] * n])
    lines = ir.Loop(b, n_lines, [*rows.values, between])
    at, *sums, factors = lines.values
    line = ir.pointer(b, at)
    sums = [
        folded(b, x, factors, ir.load(b, ir.element(b, line, I8, I64(16 * LANES * i)), of))
        for i, x in enumerate(sums)
    ]
    at, *sums, _ = lines.close(
        [b.add(at, I64(LINE_NBYTES)), *sums, factors_for(b, LANES, LINE_NBYTES)]
    )
    _, *sums = rows.close([b.add(at, jump), *sums])
    for i, x in enumerate(sums):
        ir.store(b, x, ir.element(b, target, I8, I64(16 * LANES * i)))


@kernel
def _fill_row_factors(
    distances: Ints, slices: UInts32x2, shifts: UInts32x2, out: UInts64x2
) -> None:
    """As `factors_for`, of distances in bytes that are known at run time."""
    for i in range(distances.size):
        for k in range(2):
            out[i, k] = np.uint64(
                after_zeros(np.uint32(X32 if k == 0 else INVERSE), distances[i], slices, shifts)
            ) << np.uint64(1)


# ---- as a part of other kernels ----------------------------------------------------------------
class Crcs(NamedTuple):
    """What kernels need to make CRC-32s of records and words, and where these go.

    Attributes
    ----------
    slices, shifts
        `SLICES` and `SHIFTS`.
    row_factors
        uint64 of shape (3, 2, 2), from the end of a row of a segment to the next row: by
        `OF_LINES`, `OF_GROUPS` or `OF_PAIRS`, and by whether the segment is a last one of a row of
        segments.
    rest
        uint8: room for what is folded.
    records
        uint32, an entry a segment: CRC-32 of its record. Empty if they are not wanted.
    words
        The same of the share of its words in the CRC-32 of the matrix without initial state.
    """

    slices: UInts32x2
    shifts: UInts32x2
    row_factors: UInts64x3
    rest: Bytes
    records: UInts32
    words: UInts32


#: what is folded at once: a line, the words of a group of symbols, or those of a group of pairs
OF_LINES, OF_GROUPS, OF_PAIRS = range(3)
REST_NBYTES: Final = max(BLOCK_NBYTES, LINE_NBYTES)
_SLICES, _SHIFTS = Packed(SLICES), Packed(SHIFTS)
_NO_FACTORS: Final = Packed(np.zeros((3, 2, 2), np.uint64))


class Sums:
    """CRC-32s that kernels make of records and words while these are in cache.

    These are all, or only the records', or none.

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
        whole_lines = (width * word_nbytes | last * word_nbytes) % LINE_NBYTES == 0
        self.made = wanted and bool(ir.CARRYLESS)
        self.of_words = self.made and whole_lines
        self.records = np.empty(n if self.made else 0, np.uint32)
        self.words = np.empty(n if self.of_words else 0, np.uint32)
        jumps = (cols - width) * word_nbytes, (cols - last) * word_nbytes
        self._row_factors = _row_factors(*jumps, word_nbytes) if self.of_words else _NO_FACTORS

    def arrays(self, rest: Packed) -> tuple[Any, ...]:
        """Elements of `Crcs`; `rest` is of one thread, of `REST_NBYTES`."""
        return _SLICES, _SHIFTS, self._row_factors, rest, self.records, self.words

    def crc32(self) -> int:
        """CRC-32 of all words."""
        return int(_crc32_of_shares(self.words, self.nbytes, _SLICES, _SHIFTS))


@lru_cache(maxsize=64)
def _row_factors(jump: int, last_jump: int, word_nbytes: int) -> Packed:
    """`Crcs.row_factors`: `jump` is the bytes between rows of a segment, `last_jump` between those
    of a last one.
    """
    out = np.zeros((3, 2, 2), np.uint64)
    steps = LINE_NBYTES, GROUP * word_nbytes, 2 * GROUP * word_nbytes
    distances = np.array([j + step for step in steps for j in (jump, last_jump)], np.int64)
    _fill_row_factors(distances, _SLICES, _SHIFTS, out.reshape(6, 2))
    return Packed(out)


@kernel
def _crc32_of_shares(shares: UInts32, nbytes: Int, slices: UInts32x2, shifts: UInts32x2) -> UInt:
    """CRC-32 of a matrix of `nbytes` bytes from the shares of its rectangles."""
    crc = after_zeros(np.uint32(0xFFFFFFFF), nbytes, slices, shifts) ^ np.uint32(0xFFFFFFFF)
    for i in range(shares.size):
        crc ^= shares[i]
    return crc


@jit
def _sum_record(crcs: Any, k: Any, record: Any) -> None:
    if crcs.records.size:
        crcs.records[k] = crc32_of(record, np.uint32(0), crcs.slices, crcs.rest)


@jit
def row_factors_of(job: Any, matrix: Any, crcs: Any, step: Any) -> Any:
    """Factors from a row of a segment to the next, `step` being `OF_LINES` or another."""
    return crcs.row_factors[step, 0 if job.col + job.width < matrix.cols else 1]


@jit
def nbytes_after(job: Any, matrix: Any) -> Any:
    """Bytes of a matrix that follow the last word of a segment."""
    last_row = (job.row + job.height - 1) * matrix.cols
    return matrix.data.size - (last_row + job.col + job.width) * matrix.word_nbytes


@jit
def _share_of_lanes(lanes: Any, job: Any, matrix: Any, crcs: Any) -> Any:
    """Share of a segment in the CRC of its matrix, whose words have been folded into lanes."""
    crc = by_table(lanes, crcs.slices, np.uint32(0))
    return after_zeros(crc, nbytes_after(job, matrix), crcs.slices, crcs.shifts)


@jit
def _sum_words(crcs: Any, k: Any, job: Any, matrix: Any) -> None:
    if crcs.words.size:
        nbytes, row_nbytes = matrix.word_nbytes, job.width * matrix.word_nbytes
        words = matrix.data[(job.row * matrix.cols + job.col) * nbytes :]
        jump, factors = (
            matrix.cols * nbytes - row_nbytes,
            row_factors_of(job, matrix, crcs, OF_LINES),
        )
        _fold_rows(words, job.height, row_nbytes // LINE_NBYTES, jump, factors, crcs.rest)
        crcs.words[k] = _share_of_lanes(crcs.rest[:LINE_NBYTES], job, matrix, crcs)


@jit
def _no_record(crcs: Any, k: Any, record: Any) -> None:
    pass


@jit
def _no_words(crcs: Any, k: Any, job: Any, matrix: Any) -> None:
    pass


@jit
def _no_crc(crc: Any, n: Any, slices: Any, shifts: Any) -> Any:
    return np.uint32(0)


@jit
def _no_share(lanes: Any, job: Any, matrix: Any, crcs: Any) -> Any:
    return np.uint32(0)


#: ``(crc, n, slices, shifts)``: what a CRC without initial state becomes by `n` zero bytes.
crc_after: Final = after_zeros if ir.CARRYLESS else _no_crc
#: ``(lanes, job, matrix, crcs)``: share of a segment in the CRC of its matrix, whose words
#: have been folded into lanes.
share_of_lanes: Final = _share_of_lanes if ir.CARRYLESS else _no_share
#: ``(crcs, k, record)``: CRC-32 of the record of segment `k`, if it is wanted.
sum_record: Final = _sum_record if ir.CARRYLESS else _no_record
#: ``(crcs, k, job, matrix)``: share of segment `k` in the CRC of its matrix, if it is wanted.
sum_words: Final = _sum_words if ir.CARRYLESS else _no_words
