"""CRC-32 of bytes, by carry-less multiplication, or by ``zlib`` where the CPU has none.

Spec: chapter 11.

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
from numpy.typing import NDArray

from wcodec.backends.numba import ir
from wcodec.backends.numba.ir import I8, I32, I64, vector
from wcodec.backends.numba.kernels import (
    Bytes,
    Int,
    Ints,
    UInt,
    UInts32,
    UInts32x2,
    intrinsic,
    jit,
    kernel,
)

_POLYNOMIAL: Final = 0x104C11DB7
REFLECTED: Final = 0xEDB88320  #: the polynomial without x^32, bits reflected
LANES: Final = {"avx512": 4, "avx2": 2}.get(ir.CARRYLESS, 1)  #: of 128 bits, in a vector
_VECTORS: Final = 4
BLOCK_NBYTES: Final = 16 * LANES * _VECTORS


def power_of_x(n: int) -> int:
    """``x**n`` modulo the polynomial, 33 bits, reflected."""
    r = 1
    for _ in range(n):
        r <<= 1
        if r >> 32:
            r ^= _POLYNOMIAL
    return int(f"{r:033b}"[::-1], 2)


def _slices() -> NDArray[np.uint32]:
    """Tables for eight bytes at a time: ``[k, b]`` is the CRC of byte b with k zero bytes after
    it.
    """
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (REFLECTED if crc & 1 else 0)
        tables[0, byte] = crc
    for k in range(1, 8):
        tables[k] = tables[k - 1] >> np.uint32(8) ^ tables[0][tables[k - 1] & np.uint32(255)]
    return tables


SLICES: Final = _slices()


def times(a: int, b: int) -> int:
    """Product modulo the polynomial; both reflected, of 32 bits."""
    product = 0
    while a:
        if a & 0x80000000:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = b >> 1 ^ (REFLECTED if b & 1 else 0)
    return product


def carryless_product(b: Any, x: Any, y: Any, odd: int) -> Any:
    """Carry-less products of the even u64 of two vectors, or of the odd ones."""
    if ir.CARRYLESS == "neon":
        multiply = ir.declare(b, "llvm.aarch64.neon.pmull64", vector(I8, 16), [I64, I64])
        return b.bitcast(b.call(multiply, [b.extract_element(v, I32(odd)) for v in (x, y)]), x.type)
    name = {2: "", 4: ".256", 8: ".512"}[x.type.count]
    multiply = ir.declare(b, f"llvm.x86.pclmulqdq{name}", x.type, [x.type, x.type, I8])
    return b.call(multiply, [x, y, I8(0x11 * odd)])


def folded(b: Any, x: Any, factors: Any, data: Any) -> Any:
    """An accumulator of lanes of 128 bits times factors, a pair for each lane, plus what stands
    there in the data.
    """
    lanes = x.type.count // 2
    if lanes > LANES:  # more than one instruction takes
        half = x.type.count // 2
        parts = [
            [ir.shuffle(b, v, v, range(k, k + half)) for k in (0, half)] for v in (x, factors, data)
        ]
        low, high = (folded(b, *three) for three in zip(*parts, strict=True))
        return ir.shuffle(b, low, high, range(2 * half))
    even, odd = (carryless_product(b, x, factors, i) for i in range(2))
    return b.xor(b.xor(even, odd), data)


def factors_for(b: Any, n_lanes: int, nbytes: int) -> Any:
    """Constant factors for data that stands `nbytes` later."""
    return ir.constant(
        vector(I64, 2 * n_lanes),
        [power_of_x(8 * nbytes + 32), power_of_x(8 * nbytes - 32)] * n_lanes,
    )


def _fold(b: Any, data: Any, n_blocks: Any, state: Any) -> list[Any]:
    of, factors = vector(I64, 2 * LANES), factors_for(b, LANES, BLOCK_NBYTES)
    accumulators = [
        ir.load(b, ir.element(b, data, I8, I64(16 * LANES * i)), of) for i in range(_VECTORS)
    ]
    accumulators[0] = b.xor(accumulators[0], b.insert_element(ir.zero(of), state, I32(0)))
    loop = ir.Loop(b, b.sub(n_blocks, I64(1)), accumulators)
    block, sums = ir.element(b, data, I8, b.mul(b.add(loop.index, I64(1)), I64(BLOCK_NBYTES))), []
    for i, x in enumerate(loop.values):
        sums.append(
            folded(b, x, factors, ir.load(b, ir.element(b, block, I8, I64(16 * LANES * i)), of))
        )
    return loop.close(sums)


@intrinsic
def _fold_blocks(typing: Any, data: Any, n_blocks: Any, state: Any, rest: Any) -> Any:
    """Fold `n_blocks` blocks into `rest`."""

    from numba.core import types

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, target = (
            context.make_array(signature.args[i])(context, b, args[i]).data for i in (0, 3)
        )
        for i, x in enumerate(_fold(b, source, args[1], args[2])):
            ir.store(b, x, ir.element(b, target, I8, I64(16 * LANES * i)))
        return context.get_dummy_value()

    return types.void(data, n_blocks, state, rest), codegen


@jit
def by_table(data: Any, slices: Any, crc: Any) -> Any:
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
    """CRC-32 of some bytes that follow those whose CRC is `start`."""
    crc, n_blocks = np.uint32(start) ^ np.uint32(0xFFFFFFFF), data.size // BLOCK_NBYTES
    if n_blocks > 1:
        _fold_blocks(data, n_blocks, np.int64(crc), rest)
        crc = by_table(rest[:BLOCK_NBYTES], slices, np.uint32(0))
        data = data[n_blocks * BLOCK_NBYTES :]
    return by_table(data, slices, crc) ^ np.uint32(0xFFFFFFFF)


@kernel
def _crc_each(
    data: Bytes,
    offsets: Ints,
    first: Int,
    last: Int,
    start: UInt,
    slices: UInts32x2,
    rest: Bytes,
    out: UInts32,
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
