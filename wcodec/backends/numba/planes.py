"""Planes of a segment, for words and tiles of any size. Spec: chapters 5 and 6.

Words are bytes here. What depends on their size are native functions (`words`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wcodec.backends.numba.arrays import copy, fill, padded
from wcodec.backends.numba.kernels import call_native, jit


# ---- words -------------------------------------------------------------------------------------
@jit
def _move_words(job: Any, matrix: Any, side: Any, addresses: Any, merging: Any) -> None:
    """Split the words of a segment into planes in element order, or merge them.

    The native function of the matrix does it row by row of each tile. If tiles are narrower than
    the segment, rows are short: it then does all of the segment at once, whose words are copied
    from or to `side` in element order.
    """
    height, width, tile_cols, nbytes = job.height, job.width, matrix.tile_cols, matrix.word_nbytes
    data, planes, params = matrix.data, addresses.ctypes.data, matrix.word_map.ctypes.data
    narrow, done, first = tile_cols < width, 0, job.row * matrix.cols + job.col
    if narrow and merging:
        call_native(matrix.native, (side.ctypes.data, planes, 0, height * width, params))
    if width == matrix.cols and not narrow:  # the segment's words lie side by side: one row
        height, width, tile_cols = 1, height * width, height * width
    for r in range(0, height, matrix.tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(r, min(r + matrix.tile_rows, height)):
                at = (first + i * matrix.cols + c) * nbytes
                if not narrow:
                    call_native(matrix.native, (data.ctypes.data + at, planes, done, n, params))
                else:
                    row = data[at : at + n * nbytes]
                    beside = side[done * nbytes : (done + n) * nbytes]
                    if merging:
                        copy(beside, row)
                    else:
                        copy(row, beside)
                done += n
    if narrow and not merging:
        call_native(matrix.native, (side.ctypes.data, planes, 0, done, params))


@jit
def split_words(job: Any, matrix: Any, rooms: Any) -> None:
    """Byte planes of a segment in element order, each in a room of its own."""
    for p in range(matrix.word_nbytes):
        rooms.addresses[p] = rooms.bytes.ctypes.data + p * rooms.size
    _move_words(job, matrix, rooms.words, rooms.addresses, False)


@jit
def merge_words(job: Any, matrix: Any, side: Any, addresses: Any) -> None:
    """Inverse of `split_words`; `addresses` are those of the planes, wherever each is."""
    _move_words(job, matrix, side, addresses, True)


# ---- nibbles -----------------------------------------------------------------------------------
@jit
def pack_nibbles(
    plane: Any, n: Any, packed: Any, shift: Any, keep: Any, base: Any, stand_in: Any
) -> None:
    """Pack two 4-bit codes ``(value >> shift & keep) - base`` of a plane into each byte.

    A code that is not 0 to 15 becomes `stand_in`, and so does the missing neighbour of an odd
    last one.
    """
    s, k, b, f = (
        np.uint32(shift) & np.uint32(7),
        np.uint32(keep),
        np.uint32(base),
        np.uint32(stand_in),
    )
    if n % 2:
        plane[n] = plane[n - 1]  # the missing neighbour; replaced below
    two = plane[: (n + 1) // 2 * 2].view(np.uint16)
    for i in range(two.size):
        w = np.uint32(two[i])
        one = ((((w & np.uint32(255)) >> s) & k) - b) & np.uint32(255)
        other = ((((w >> np.uint32(8)) >> s) & k) - b) & np.uint32(255)
        one = f if one > 15 else one
        other = f if other > 15 else other
        packed[i] = np.uint8(one | other << np.uint32(4))
    if n % 2:
        packed[n // 2] = (packed[n // 2] & 15) | stand_in << 4


@jit
def pack_plane(job: Any, word_nbytes: Any, p: Any, plane: Any, packed: Any) -> None:
    """Codes of plane `p` of a segment of layout PAIRS, as `pack_nibbles`.

    `plane` is the top byte plane: a one-byte word is two codes, of a larger one the top byte is one
    code in the window.
    """
    shift, keep = (4 - 4 * p, 15) if word_nbytes == 1 else (0, 255)
    stand_in = job.fill if p == 0 else 0
    pack_nibbles(plane, job.height * job.width, packed, shift, keep, job.base, stand_in)


@jit
def _unpack_nibbles(packed: Any, plane: Any, keep: Any, shift: Any, base: Any) -> None:
    """Inverse of `pack_nibbles`: two bytes at once, in a uint16. They join the bits in `keep`."""
    two, stay = plane.view(np.uint16), np.uint16(keep)
    add, s = np.uint16(base * 0x0101), np.uint32(shift) & np.uint32(7)
    for i in range(packed.size):
        v = np.uint32(packed[i])
        codes = (v & np.uint32(15)) | (v & np.uint32(240)) << np.uint32(4)
        two[i] = np.uint16((codes << s) + (two[i] & stay) + add)


@jit
def unpack_plane(job: Any, word_nbytes: Any, p: Any, packed: Any, plane: Any) -> None:
    """Inverse of `pack_plane`; plane 0 first, which plane 1 joins."""
    half = (job.height * job.width + 1) // 2
    shift = 4 if p == 0 and word_nbytes == 1 else 0
    _unpack_nibbles(packed[:half], plane[: 2 * half], 0xFFFF * p, shift, job.base)


# ---- patches -----------------------------------------------------------------------------------
@jit
def is_uncoded(symbol: Any, uncoded: Any) -> Any:
    """Whether a table does not code a symbol; `uncoded` is its row of `EncodingTables`."""
    row = np.int64(uncoded[(symbol >> 7) << 4 | (symbol & 15)])
    return (row >> (symbol >> 4 & 7)) & 1 == 1


@jit
def coded_pair(pair: Any, stand_in: Any, uncoded: Any) -> Any:
    """The pair of codes that stands for one that a table does not code, as
    `wcodec.reference.planes.patch_uncoded` has it.
    """
    one, other = (pair & 15) | stand_in << 4, (pair & 240) | stand_in
    if not is_uncoded(one, uncoded):
        return one
    return stand_in | stand_in << 4 if is_uncoded(other, uncoded) else other


@jit
def replace_uncoded(packed: Any, stand_in: Any, uncoded: Any) -> None:
    """Replace the pairs that a table does not code."""
    for i in range(packed.size):
        pair = np.int64(packed[i])
        if is_uncoded(pair, uncoded):
            packed[i] = np.uint8(coded_pair(pair, stand_in, uncoded))


@jit
def put_patches(top: Any, packed: Any, n: Any, base: Any, record: Any, at: Any) -> Any:
    """Write the patches of `n` words whose code does not say what their top byte is.

    They are few: most blocks are passed over. Returns how many there are.
    """
    start, low = at, np.uint32(base)
    if n % 2:
        top[n] = np.uint8(base + (np.int64(packed[n // 2]) >> 4))  # of no word: no patch
    two = top[: (n + 1) // 2 * 2].view(np.uint16)
    for first in range(0, two.size, 128):
        some, codes, differ = two[first : first + 128], packed[first : first + 128], np.uint32(0)
        for i in range(some.size):
            w, code = np.uint32(some[i]), np.uint32(codes[i])
            one = ((w & np.uint32(255)) - low) & np.uint32(255)
            other = ((w >> np.uint32(8)) - low) & np.uint32(255)
            differ |= (one ^ (code & np.uint32(15))) | (other ^ (code >> np.uint32(4)))
        if differ == 0:
            continue
        for i in range(2 * first, 2 * (first + some.size)):
            stored = np.int64(packed[i // 2]) >> 4 * (i % 2) & 15
            if (np.int64(top[i]) - base) & 255 != stored:
                record[at] = np.uint8(i)
                record[at + 1] = np.uint8(i >> 8)
                record[at + 2] = np.uint8(i >> 16)
                record[at + 3] = top[i]
                at += 4
    fill(record[at : padded(at)], 0)
    return (at - start) // 4


@jit
def patches_of(job: Any, payload: Any) -> Any:
    """Patches of a segment as they are stored, uint32: ``top byte << 24 | index``."""
    at = job.patches_offset
    return payload[at : at + 4 * job.n_patches].view(np.uint32)


@jit
def apply_patches(patches: Any, n: Any, top: Any) -> Any:
    """Set the bytes of a top plane of `n` words that lie outside the window.

    Returns whether the indices ascend and lie within the segment.
    """
    before: Any = -1
    for i in range(patches.size):
        index = np.int64(patches[i]) & 0xFFFFFF
        if index <= before or index >= n:
            return False
        top[index] = np.uint8(patches[i] >> np.uint32(24))
        before = index
    return True
