"""CRC-32 by carry-less multiplication, with ``zlib`` where the CPU has none. Spec: chapter 11.

Blocks are folded: an accumulator of 128 bits, times ``x**distance`` modulo the CRC's polynomial, is added to the data
that stands `distance` bits later (V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
Instruction", Intel, 2009). What is left when less than a block remains has the same CRC as all the data before, with an
initial state of 0; it is finished by table, eight bytes at a time.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from wcodec.backends import numba_ir as ir
from wcodec.backends.numba_ir import I8, I32, I64, intrinsic, vector
from wcodec.backends.numba_streams import jit, kernel

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
    """Tables for eight bytes at a time: ``[k, b]`` is the CRC of byte b with k zero bytes behind it."""
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
_FACTORS: Final = [_power(8 * BLOCK_NBYTES + 32), _power(8 * BLOCK_NBYTES - 32)] * _LANES


def _fold(b: Any, data: Any, n_blocks: Any, state: Any) -> list[Any]:
    of = vector(I64, 2 * _LANES)
    factors = ir.constant(of, _FACTORS)
    multiply = ir.declare(b, f"llvm.x86.pclmulqdq{ {1: '', 2: '.256', 4: '.512'}[_LANES] }", of, [of, of, I8])
    accumulators = [ir.load(b, ir.element(b, data, I8, I64(16 * _LANES * i)), of) for i in range(_VECTORS)]
    accumulators[0] = b.xor(accumulators[0], b.insert_element(ir.zero(of), state, I32(0)))
    loop = ir.Loop(b, b.sub(n_blocks, I64(1)), accumulators)
    block, folded = ir.element(b, data, I8, b.mul(b.add(loop.index, I64(1)), I64(BLOCK_NBYTES))), []
    for i, x in enumerate(loop.values):
        low, high = b.call(multiply, [x, factors, I8(0x00)]), b.call(multiply, [x, factors, I8(0x11)])
        folded.append(b.xor(b.xor(low, high), ir.load(b, ir.element(b, block, I8, I64(16 * _LANES * i)), of)))
    return loop.close(folded)


@intrinsic
def _fold_blocks(typing: Any, data: Any, n_blocks: Any, state: Any, rest: Any) -> Any:
    """Fold `n_blocks` blocks into `rest`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, b, args[i]).data for i in (0, 3))
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


@kernel
def _crc_each(data: Any, offsets: Any, first: Any, last: Any, start: Any, slices: Any, rest: Any, out: Any) -> None:
    """CRC-32 of pieces `first` to `last`; `start` is that of what stands before each."""
    for k in range(first, last):
        piece = data[offsets[k] : offsets[k + 1]]
        crc, n_blocks = np.uint32(start) ^ np.uint32(0xFFFFFFFF), piece.size // BLOCK_NBYTES
        if n_blocks > 1:
            _fold_blocks(piece, n_blocks, np.int64(crc), rest)
            crc = _by_table(rest, slices, np.uint32(0))
            piece = piece[n_blocks * BLOCK_NBYTES :]
        out[k] = _by_table(piece, slices, crc) ^ np.uint32(0xFFFFFFFF)


def crc32_range(data: NDArray[np.uint8], offsets: NDArray[np.int64], first: int, last: int, start: int, out: NDArray[np.uint32]) -> None:
    """``out[k]``: CRC-32 of ``data[offsets[k] : offsets[k + 1]]`` for k from `first` to `last`, each continuing `start`."""
    if ir.CARRYLESS:
        _crc_each(data, offsets, first, last, start, SLICES, np.empty(BLOCK_NBYTES, np.uint8), out)
        return
    view = data.data
    for k in range(first, last):
        out[k] = zlib.crc32(view[offsets[k] : offsets[k + 1]], start)
