"""The loops of the numba backend: plain code, compiled by LLVM, that runs without the GIL.

Every array has one type wherever it comes from (bytes are ``uint8[::1]``, whatever the words), so that a kernel is
compiled once. Words are read through views. Loops run over slices, because numba guards an index that may be negative.

A job is one row of int64: what a kernel has to know of a segment. Its columns are named below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])

# Columns of a job. Those of a plane stand behind the others, PLANE_COLUMNS for each plane.
ROW, COL, HEIGHT, WIDTH, LAYOUT, BASE, FILL, START, N_TILES, MODES_AT, MODES_NBYTES, PATCHES_AT, N_PATCHES = range(13)
N_COLUMNS: Final = 13
CODER, TABLE, PREDICTION, AT, NBYTES = range(5)
PLANE_COLUMNS: Final = 5

# Copies of the reference's enumerations: compiled code sees them as constants.
LAYOUT_RAW, LAYOUT_PAIRS = 0, 2
CODER_RAW, CODER_CONSTANT, CODER_RANS = 0, 1, 2
OK, BAD_STREAM, BAD_PATCH, BAD_TILE_MODE = 0, 1, 2, 3
LEFT, TOP, AVG, N_MODES, PER_TILE = 1, 2, 3, 5, 255
LANES, GROUP, HEAD_NBYTES, STATE_LOW = 32, 128, 128, 1 << 16


def _jit(function: F) -> F:
    """Compile as a part of the kernels that call it."""
    compile_with: Any = njit
    compiled: F = compile_with(error_model="numpy")(function)
    return compiled


def _kernel(function: F) -> F:
    """Compile at the first call, and keep the machine code on disk if there is a place for it."""
    compile_with: Any = njit
    try:
        compiled: F = compile_with(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba finds no directory that it may write to
        compiled = compile_with(nogil=True, error_model="numpy")(function)
    return compiled


# ---- words and planes ------------------------------------------------------------------------------------------------
# A word map is five uint64: the bits that move up by one, those that stay, where the sign goes and how far down that is,
# and the bits to flip. Word sizes are literals at each call, so that LLVM knows the shifts and can use narrow lanes.
@_jit
def _split_run(words: Any, planes: Any, room: Any, word_map: Any, word_nbytes: Any) -> None:
    """Planes of words that lie side by side, `room` apart; two planes at a time."""
    word, last = words.dtype.type, np.uint64(8 * word_nbytes - 1)
    up, stay, sign, flip = word(word_map[0]), word(word_map[1]), word(word_map[2]), word(word_map[3])
    down, one, eight = word_map[4] & last, np.uint64(1), np.uint64(8)
    for p in range(0, word_nbytes, 2):
        high, low = planes[p * room : p * room + words.size], planes[(p + 1) * room : (p + 1) * room + words.size]
        shift = np.uint64(8 * (word_nbytes - 2 - p)) & last
        for i in range(words.size):
            w = word(words[i] ^ flip)
            w = word(((w & up) << one) | (w & stay) | ((w >> down) & sign))
            if word_nbytes == 1:
                high[i] = np.uint8(w)
            else:
                two = np.uint16(w >> shift)
                high[i] = np.uint8(two >> eight)
                low[i] = np.uint8(two)


@_jit
def _split(job: Any, shape: Any, words: Any, planes: Any, room: Any, word_map: Any) -> None:
    """Byte planes of a segment in element order, `room` apart."""
    cols, tile_rows, tile_cols, word_nbytes = shape
    height, width = job[HEIGHT], job[WIDTH]
    start, at = job[ROW] * cols + job[COL], 0
    if width == cols and tile_cols >= width:  # the segment's words lie side by side: one row
        height, width, tile_cols = 1, height * width, height * width
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(r, min(r + tile_rows, height)):
                a = start + i * cols + c
                to = planes[at:]
                if word_nbytes == 1:
                    _split_run(words[a : a + n], to, room, word_map, 1)
                elif word_nbytes == 2:
                    _split_run(words.view(np.uint16)[a : a + n], to, room, word_map, 2)
                elif word_nbytes == 4:
                    _split_run(words.view(np.uint32)[a : a + n], to, room, word_map, 4)
                else:
                    _split_run(words.view(np.uint64)[a : a + n], to, room, word_map, 8)
                at += n


@_jit
def _unmap(words: Any, word_map: Any, word_nbytes: Any) -> None:
    """Inverse of the word map, in place."""
    word, last = words.dtype.type, np.uint64(8 * word_nbytes - 1)
    up, stay, sign, flip = word(word_map[0]), word(word_map[1]), word(word_map[2]), word(word_map[3])
    down, one = word_map[4] & last, np.uint64(1)
    for i in range(words.size):
        w = words[i]
        words[i] = word(((w >> one) & up) | (w & stay) | word((w & sign) << down)) ^ flip


@_jit
def _source(planes: Any, payload: Any, raw_at: Any, at: Any, n: Any) -> Any:
    """Decoded bytes of a plane: in the payload itself if the plane is stored raw."""
    return payload[raw_at + at : raw_at + at + n] if raw_at >= 0 else planes[at : at + n]


@_jit
def _merge(job: Any, shape: Any, planes: Any, room: Any, payload: Any, raw_at: Any, out: Any, word_map: Any) -> None:
    """Inverse of `_split`; two bytes at a time."""
    cols, tile_rows, tile_cols, word_nbytes = shape
    height, width = job[HEIGHT], job[WIDTH]
    start, at = job[ROW] * cols + job[COL], 0
    if width == cols and tile_cols >= width:
        height, width, tile_cols = 1, height * width, height * width
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(r, min(r + tile_rows, height)):
                o = start + i * cols + c
                a = _source(planes, payload, raw_at[0], at, n)
                if word_nbytes == 1:
                    to1 = out[o : o + n]
                    _copy(a, to1)
                    _unmap(to1, word_map, 1)
                elif word_nbytes == 2:
                    to2 = out.view(np.uint16)[o : o + n]
                    b = _source(planes[room:], payload, raw_at[1], at, n)
                    for k in range(n):
                        to2[k] = np.uint16(a[k]) << np.uint16(8) | np.uint16(b[k])
                    _unmap(to2, word_map, 2)
                elif word_nbytes == 4:
                    to4 = out.view(np.uint32)[o : o + n]
                    for p in range(0, 4, 2):
                        a = _source(planes[p * room :], payload, raw_at[p], at, n)
                        b = _source(planes[(p + 1) * room :], payload, raw_at[p + 1], at, n)
                        for k in range(n):
                            to4[k] = np.uint32(to4[k]) << np.uint32(16) | np.uint32(a[k]) << np.uint32(8) | np.uint32(b[k])
                    _unmap(to4, word_map, 4)
                else:
                    to8 = out.view(np.uint64)[o : o + n]
                    for p in range(0, 8, 2):
                        a = _source(planes[p * room :], payload, raw_at[p], at, n)
                        b = _source(planes[(p + 1) * room :], payload, raw_at[p + 1], at, n)
                        for k in range(n):
                            to8[k] = to8[k] << np.uint64(16) | np.uint64(a[k]) << np.uint64(8) | np.uint64(b[k])
                    _unmap(to8, word_map, 8)
                at += n


@_jit
def _pack(plane: Any, n: Any, packed: Any, shift: Any, keep: Any, base: Any, fill: Any) -> Any:
    """Two 4-bit codes ``(value >> shift & keep) - base`` a byte. Returns how many are outside of 0 to 15: they become `fill`."""
    outside: Any = 0
    s, k, b, f = np.uint32(shift) & np.uint32(7), np.uint32(keep), np.uint32(base), np.uint32(fill)
    if n % 2:
        plane[n] = plane[n - 1]  # the missing neighbour; replaced below
    two = plane[: (n + 1) // 2 * 2].view(np.uint16)
    for i in range(two.size):
        w = np.uint32(two[i])
        one = ((((w & np.uint32(255)) >> s) & k) - b) & np.uint32(255)
        other = ((((w >> np.uint32(8)) >> s) & k) - b) & np.uint32(255)
        outside += np.int64(one > 15) + np.int64(other > 15)
        one = f if one > 15 else one
        other = f if other > 15 else other
        packed[i] = np.uint8(one | other << np.uint32(4))
    if n % 2:
        outside -= np.int64((((np.int64(plane[n]) >> shift) & keep) - base) & 255 > 15)
        packed[n // 2] = (packed[n // 2] & 15) | fill << 4
    return outside


@_jit
def _unpack(packed: Any, plane: Any, keep: Any, shift: Any, base: Any) -> None:
    """Inverse of `_pack`: two bytes at once, in a uint16. They join the bits of `plane` in `keep`."""
    two, stay = plane.view(np.uint16), np.uint16(keep)
    add, s = np.uint16(base * 0x0101), np.uint32(shift) & np.uint32(7)
    for i in range(packed.size):
        v = np.uint32(packed[i])
        two[i] = np.uint16((((v & np.uint32(15)) | (v & np.uint32(240)) << np.uint32(4)) << s) + (two[i] & stay) + add)


# ---- prediction ------------------------------------------------------------------------------------------------------
@_jit
def _predict_tile(tile: Any, out: Any, height: Any, width: Any, mode: Any) -> None:
    """Residuals of a tile. The first row is LEFT, the first column TOP, whatever the mode."""
    out[0] = tile[0]
    for c in range(1, width):
        out[c] = tile[c] - tile[c - 1]
    for r in range(1, height):
        above, row, to = tile[(r - 1) * width : r * width], tile[r * width : (r + 1) * width], out[r * width : (r + 1) * width]
        to[0] = row[0] - above[0]
        if mode == LEFT:
            for c in range(1, width):
                to[c] = row[c] - row[c - 1]
        elif mode == TOP:
            for c in range(1, width):
                to[c] = row[c] - above[c]
        elif mode == AVG:
            for c in range(1, width):
                to[c] = row[c] - ((np.uint32(row[c - 1]) + np.uint32(above[c])) >> np.uint32(1))
        else:
            for c in range(1, width):
                to[c] = row[c] - row[c - 1] - above[c] + above[c - 1]


@_jit
def _reconstruct_tile(tile: Any, height: Any, width: Any, mode: Any) -> None:
    """Inverse of `_predict_tile`, in place."""
    left = np.uint32(0)
    for c in range(width):
        left = (left + np.uint32(tile[c])) & np.uint32(255)
        tile[c] = left
    for r in range(1, height):
        above, row = tile[(r - 1) * width : r * width], tile[r * width : (r + 1) * width]
        if mode == TOP:
            for c in range(width):
                row[c] = row[c] + above[c]
            continue
        left = (np.uint32(row[0]) + np.uint32(above[0])) & np.uint32(255)
        if mode == LEFT:
            row[0] = left
            for c in range(1, width):
                left = (left + np.uint32(row[c])) & np.uint32(255)
                row[c] = left
        elif mode == AVG:
            row[0] = left
            for c in range(1, width):
                left = (np.uint32(row[c]) + ((left + np.uint32(above[c])) >> np.uint32(1))) & np.uint32(255)
                row[c] = left
        else:  # PLANAR: the sum of the row's residuals, on top of the row above
            total = np.uint32(0)
            for c in range(width):
                total = (total + np.uint32(row[c])) & np.uint32(255)
                row[c] = total + np.uint32(above[c])


@_jit
def _each_tile(job: Any, shape: Any, tile: Any, out: Any, mode: Any, modes: Any, inverse: Any) -> None:
    """Predict or reconstruct all tiles of a plane; `modes` holds a mode for each if `mode` is PER_TILE."""
    _, tile_rows, tile_cols, _ = shape
    height, width, at, i = job[HEIGHT], job[WIDTH], 0, 0
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            h, w = min(tile_rows, height - r), min(tile_cols, width - c)
            here = modes[i] if mode == PER_TILE else mode
            if inverse:
                if here != 0:
                    _reconstruct_tile(tile[at : at + h * w], h, w, here)
            elif here != 0:
                _predict_tile(tile[at : at + h * w], out[at : at + h * w], h, w, here)
            else:
                _copy(tile[at : at + h * w], out[at : at + h * w])
            at += h * w
            i += 1


# ---- small things ----------------------------------------------------------------------------------------------------
@_jit
def _copy(source: Any, target: Any) -> None:
    for i in range(source.size):
        target[i] = source[i]


@_jit
def _fill(target: Any, value: Any) -> None:
    for i in range(target.size):
        target[i] = value


@_jit
def _padded(nbytes: Any) -> Any:
    return (nbytes + 15) & ~15


@_jit
def _put(source: Any, record: Any, at: Any) -> Any:
    """Write bytes and their padding into a record; returns where the next part starts."""
    end = at + source.size
    _copy(source, record[at:end])
    _fill(record[end : _padded(end)], 0)
    return _padded(end)


# ---- histograms ------------------------------------------------------------------------------------------------------
@_jit
def _count(symbols: Any, four: Any, counts: Any) -> None:
    """Four counts a symbol, so that equal neighbours do not wait for each other."""
    _fill(four, 0)
    n = symbols.size // 4
    for i in range(n):
        four[symbols[4 * i]] += np.uint32(1)
        four[256 + symbols[4 * i + 1]] += np.uint32(1)
        four[512 + symbols[4 * i + 2]] += np.uint32(1)
        four[768 + symbols[4 * i + 3]] += np.uint32(1)
    for i in range(4 * n, symbols.size):
        four[symbols[i]] += np.uint32(1)
    for i in range(256):
        counts[i] = np.int64(four[i]) + four[256 + i] + four[512 + i] + four[768 + i]


@_kernel
def histogram_range(
    first: Any, last: Any, jobs: Any, shape: Any, word_map: Any, words: Any,
    mode: Any, base: Any, fill: Any, planes: Any, room: Any, four: Any, counts: Any,
) -> None:  # fmt: skip
    """Counts of the symbols of jobs `first` to `last`; `base` is -1 for layout BYTES."""
    word_nbytes = shape[3]
    work = planes[word_nbytes * room :]
    for k in range(first, last):
        job = jobs[k]
        n = job[HEIGHT] * job[WIDTH]
        half = (n + 1) // 2
        _split(job, shape, words, planes, room, word_map)
        if base < 0:
            for p in range(word_nbytes):
                plane = planes[p * room : p * room + n]
                if mode == 0:
                    _count(plane, four, counts[k, p])
                else:
                    _each_tile(job, shape, plane, work, mode, plane, False)
                    _count(work[:n], four, counts[k, p])
        else:
            for p in range(counts.shape[1]):
                shift, keep = (4 - 4 * p, 15) if word_nbytes == 1 else (0, 255)
                _pack(planes, n, work, shift, keep, base, fill if p == 0 else 0)
                _count(work[:half], four, counts[k, p])


# ---- encoding --------------------------------------------------------------------------------------------------------
@_jit
def _encode_stream(symbols: Any, n: Any, coding: Any, bits: Any, padding: Any, words: Any, states: Any, record: Any, at: Any) -> Any:
    """Encode `n` symbols into a stream at ``record[at]``; returns where the next part starts.

    ``coding[s]`` is the reciprocal ``ceil(2 ** (32 + bits) / freq)`` and ``freq << 32 | start``. A state below
    ``freq << 32 - bits`` times its error is below ``2 ** (32 + bits)``, so the quotient is exact, and the product fits.
    """
    n_groups = (n + GROUP - 1) // GROUP
    _fill(symbols[n : n_groups * GROUP], padding)
    _fill(states, STATE_LOW)
    one, u16, u32 = np.uint64(1), np.uint64(16), np.uint64(32)
    p = np.uint64(bits)
    room_shift, divide = u32 - p, u32 + p
    end = np.uint64(n_groups * GROUP)
    position = end
    for g in range(n_groups - 1, -1, -1):
        group = symbols[g * GROUP : (g + 1) * GROUP]
        for j in range(3, -1, -1):
            for i in range(LANES):  # lane 31 first: the decoder reads forward
                lane = LANES - 1 - i
                s = group[4 * lane + j]
                reciprocal, packed = coding[s, 0], coding[s, 1]
                f, x = packed >> u32, np.uint64(states[lane])
                words[position - one] = np.uint16(x)  # kept only if the position moves
                over = np.uint64(x >= f << room_shift)
                position -= over
                x >>= over * u16
                q = (x * reciprocal) >> divide
                states[lane] = np.uint32(x + q * ((one << p) - f) + (packed & np.uint64(0xFFFFFFFF)))
    _copy(states, record[at : at + HEAD_NBYTES].view(np.uint32))
    n_words = np.int64(end - position)
    _copy(words[np.int64(position) : np.int64(end)], record[at + HEAD_NBYTES : at + HEAD_NBYTES + 2 * n_words].view(np.uint16))
    behind = at + HEAD_NBYTES + 2 * n_words
    _fill(record[behind : _padded(behind)], 0)
    return _padded(behind)


@_jit
def _put_patches(top: Any, n: Any, base: Any, record: Any, at: Any) -> Any:
    """Patches of the words outside the window; returns where they end."""
    for i in range(n):
        if (np.int64(top[i]) - base) & 255 > 15:
            record[at] = np.uint8(i)
            record[at + 1] = np.uint8(i >> 8)
            record[at + 2] = np.uint8(i >> 16)
            record[at + 3] = top[i]
            at += 4
    _fill(record[at : _padded(at)], 0)
    return _padded(at)


@_kernel
def encode_range(
    first: Any, last: Any, jobs: Any, shape: Any, word_map: Any, words: Any, modes: Any, coding: Any, tables: Any,
    planes: Any, room: Any, stream_words: Any, states: Any, record: Any, n_units: Any, n_patches: Any,
) -> Any:  # fmt: skip
    """Encode jobs `first` to `last` one behind another into `record`, which has room for the worst. Returns their bytes."""
    cols, _, _, word_nbytes = shape
    work, at = planes[word_nbytes * room :], 0
    for k in range(first, last):
        job = jobs[k]
        height, width = job[HEIGHT], job[WIDTH]
        n, row_nbytes = height * width, width * word_nbytes
        half = (n + 1) // 2
        if job[LAYOUT] == LAYOUT_RAW:
            for r in range(height):
                a = ((job[ROW] + r) * cols + job[COL]) * word_nbytes
                _copy(words[a : a + row_nbytes], record[at : at + row_nbytes])
                at += row_nbytes
            _fill(record[at : _padded(at)], 0)
            at = _padded(at)
            continue
        mode_at = job[MODES_AT]
        at = _put(modes[mode_at : mode_at + job[MODES_NBYTES]], record, at)
        _split(job, shape, words, planes, room, word_map)
        pairs, found = job[LAYOUT] == LAYOUT_PAIRS, 0
        n_planes = 2 if pairs and word_nbytes == 1 else word_nbytes
        for p in range(n_planes):
            plane = job[N_COLUMNS + p * PLANE_COLUMNS :]
            symbols, size, mode = planes[p * room : (p + 1) * room], n, plane[PREDICTION]
            if pairs and (p == 0 or word_nbytes == 1):
                symbols, size = work, half
                shift, keep = (4 - 4 * p, 15) if word_nbytes == 1 else (0, 255)
                found += _pack(planes, n, work, shift, keep, job[BASE], job[FILL] if p == 0 else 0)
            if plane[CODER] == CODER_RAW:
                at = _put(symbols[:size], record, at)
            elif plane[CODER] == CODER_RANS:
                if mode != 0:
                    _each_tile(job, shape, symbols, work, mode, modes[mode_at:], False)
                    symbols = work
                    if mode == PER_TILE:
                        mode_at += job[N_TILES]
                t = plane[TABLE]
                behind = _encode_stream(symbols, size, coding[t], tables[t, 0], tables[t, 1], stream_words, states, record, at)
                n_units[p, k] = (behind - at) // 16
                at = behind
        if found > 0:
            at = _put_patches(planes, n, job[BASE], record, at)
        n_patches[k] = found
    return at


# ---- decoding --------------------------------------------------------------------------------------------------------
@_jit
def _decode_group(words: Any, position: Any, states: Any, lut: Any, bits: Any, out: Any) -> Any:
    """Decode 128 symbols; `words` holds at least 128 from `position`."""
    p = np.uint64(bits)
    mask, u16 = (np.uint64(1) << p) - np.uint64(1), np.uint64(16)
    for j in range(4):
        for lane in range(LANES):
            x = np.uint64(states[lane])
            entry = np.uint64(lut[x & mask])
            x = (entry >> np.uint64(20)) * (x >> p) + ((entry >> np.uint64(8)) & np.uint64(4095))
            w = np.uint64(words[position])
            low = np.uint64(x < np.uint64(STATE_LOW))
            x = ((x << u16) | w) if low else x
            position += low
            states[lane] = np.uint32(x)
            out[4 * lane + j] = np.uint8(entry)
    return position


@_jit
def _decode_stream(stream: Any, n: Any, lut: Any, bits: Any, states: Any, tail: Any, out: Any) -> Any:
    """Decode `n` symbols, and the rest of the last group, into `out`. Returns whether the stream ends as it must.

    Where less than a group's most words are left, they are read from `tail`, with zeros behind them: never past the end.
    """
    _copy(stream[:HEAD_NBYTES].view(np.uint32), states)
    words = stream[HEAD_NBYTES:].view(np.uint16)
    position: Any = 0
    n_words = words.size
    for g in range((n + GROUP - 1) // GROUP):
        symbols = out[g * GROUP : (g + 1) * GROUP]
        if position + GROUP <= n_words:
            position = np.int64(_decode_group(words, np.uint64(position), states, lut, bits, symbols))
        else:
            if position > n_words:
                return False
            _fill(tail, 0)
            _copy(words[position:], tail)
            position += np.int64(_decode_group(tail, np.uint64(0), states, lut, bits, symbols))
    good = position <= n_words and n_words - position < 8
    for lane in range(LANES):
        good &= states[lane] == STATE_LOW
    return good


@_jit
def _patch(patches: Any, n: Any, top: Any) -> Any:
    """Set the bytes that lie outside the window. Returns whether the indices ascend and lie within the segment."""
    before: Any = -1
    for i in range(patches.size):
        index = np.int64(patches[i]) & 0xFFFFFF
        if index <= before or index >= n:
            return False
        top[index] = np.uint8(patches[i] >> np.uint32(24))
        before = index
    return True


@_jit
def _decode_planes(
    job: Any, word_nbytes: Any, payload: Any, luts: Any, tables: Any, planes: Any, room: Any, raw_at: Any, states: Any, tail: Any
) -> Any:
    """Planes as they are stored, codes unpacked; all streams before anything else, for a bad one goes before any other fault."""
    pairs, half, n = job[LAYOUT] == LAYOUT_PAIRS, (job[HEIGHT] * job[WIDTH] + 1) // 2, job[HEIGHT] * job[WIDTH]
    for p in range(2 if pairs and word_nbytes == 1 else word_nbytes):
        plane = job[N_COLUMNS + p * PLANE_COLUMNS :]
        at, packed = plane[AT], pairs and (p == 0 or word_nbytes == 1)
        size = half if packed else n
        target = planes[word_nbytes * room :] if packed else planes[p * room : (p + 1) * room]
        raw_at[p] = -1
        if plane[CODER] == CODER_RANS:
            t = plane[TABLE]
            if not _decode_stream(payload[at : at + plane[NBYTES]], size, luts[t], tables[t, 0], states, tail, target):
                return False
        elif plane[CODER] == CODER_CONSTANT:
            _fill(target[:size], np.uint8(plane[TABLE]))
        elif packed:
            target = payload[at : at + size]
        else:
            raw_at[p] = at
        if packed:
            _unpack(target[:half], planes[: 2 * half], 0xFFFF * p, 4 if p == 0 and word_nbytes == 1 else 0, job[BASE])
    return True


@_kernel
def decode_range(
    first: Any, last: Any, jobs: Any, shape: Any, word_map: Any, payload: Any, luts: Any, tables: Any,
    planes: Any, room: Any, raw_at: Any, states: Any, tail: Any, out: Any, status: Any,
) -> None:  # fmt: skip
    """Decode jobs `first` to `last`, and say how each of them went."""
    cols, _, _, word_nbytes = shape
    for k in range(first, last):
        job = jobs[k]
        at, row_nbytes = job[START], job[WIDTH] * word_nbytes
        status[k] = OK
        if job[LAYOUT] == LAYOUT_RAW:
            for r in range(job[ROW], job[ROW] + job[HEIGHT]):
                to = (r * cols + job[COL]) * word_nbytes
                _copy(payload[at : at + row_nbytes], out[to : to + row_nbytes])
                at += row_nbytes
            continue
        if not _decode_planes(job, word_nbytes, payload, luts, tables, planes, room, raw_at, states, tail):
            status[k] = BAD_STREAM
            continue
        modes = payload[at : at + job[MODES_NBYTES]]
        for i in range(modes.size):
            if modes[i] >= N_MODES:
                status[k] = BAD_TILE_MODE
        patches = payload[job[PATCHES_AT] : job[PATCHES_AT] + 4 * job[N_PATCHES]].view(np.uint32)
        if status[k] == OK and not _patch(patches, job[HEIGHT] * job[WIDTH], planes):
            status[k] = BAD_PATCH
        if status[k] != OK:
            continue
        mode_at = 0
        for p in range(word_nbytes):
            mode = job[N_COLUMNS + p * PLANE_COLUMNS + PREDICTION]
            if mode != 0:
                plane = planes[p * room : (p + 1) * room]
                _each_tile(job, shape, plane, plane, mode, modes[mode_at:], True)
                if mode == PER_TILE:
                    mode_at += job[N_TILES]
        _merge(job, shape, planes, room, payload, raw_at, out, word_map)
