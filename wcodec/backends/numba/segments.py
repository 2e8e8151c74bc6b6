"""The loops of the numba backend: plain code, compiled by LLVM, that runs without the GIL.

Every array has one type wherever it comes from, and words are bytes, so that a kernel is compiled
once. Loops run over slices, because numba guards an index that may be negative.

A job is one row of int64: what a kernel has to know of a segment. Its columns are named below.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba.checksums import sum_record, sum_words
from wcodec.backends.numba.compiling import call_5, jit, kernel
from wcodec.backends.numba.prediction import PER_TILE, make_residuals, restore_tiles
from wcodec.backends.numba.rans import copy, decode_stream, encode_stream, fill, padded

# Columns of a job. Those of a plane stand behind the others, PLANE_COLUMNS for each plane.
(
    ROW,
    COL,
    HEIGHT,
    WIDTH,
    LAYOUT,
    BASE,
    FILL,
    START,
    N_TILES,
    MODES_AT,
    MODES_NBYTES,
    PATCHES_AT,
    N_PATCHES,
    END,
) = range(14)
SCALES_AT, SCALES_NBYTES = 14, 15
N_COLUMNS: Final = 16
CODER, TABLE, PREDICTION, AT, NBYTES = range(5)
PLANE_COLUMNS: Final = 5

# Copies of the reference's enumerations: compiled code sees them as constants.
LAYOUT_RAW, LAYOUT_PAIRS = 0, 2
CODER_RAW, CODER_CONSTANT, CODER_RANS, CODER_CONTEXT = 0, 1, 2, 4
OK, BAD_STREAM, BAD_PATCH, BAD_TILE_MODE = 0, 1, 2, 3
WITH_CONTEXTS: Final = -1  #: kind of segments that `contexts` codes


# ---- jobs --------------------------------------------------------------------------------------
@kernel
def fill_jobs(
    jobs: Any,
    tile_rows: Any,
    tile_cols: Any,
    layout: Any,
    base: Any,
    fill: Any,
    n_patches: Any,
    coder: Any,
    table: Any,
    prediction: Any,
    modes_nbytes: Any,
    scale_nbytes: Any,
    stream_nbytes: Any,
    offsets: Any,
    numbers: Any,
    ids: Any,
    kinds: Any,
    of_bytes: Any,
    of_pairs: Any,
) -> Any:
    """Fill in jobs of which only the rectangles are, and `kinds`: which of the fused kernels suit
    each of them, 0, or `WITH_CONTEXTS`.

    The tables that are used get numbers from 0, which `numbers` then holds, and `ids` says which
    they are. `numbers` comes with a 1 for each table of a context map and 0 for the others;
    `offsets` is empty for encoding. Returns how many tables are used, or -1 if one is not there.
    """
    n_planes, n_used, modes_at, scales_at = coder.shape[0], 0, 0, 0
    for p in range(n_planes):
        for k in range(len(jobs)):
            if coder[p, k] == CODER_RANS:
                if table[p, k] >= numbers.size:
                    return -1
                numbers[table[p, k]] = 1
    for i in range(numbers.size):
        if numbers[i]:
            ids[n_used], numbers[i] = i, n_used
            n_used += 1
    for k in range(len(jobs)):
        job, plain, contexts, at = jobs[k], True, False, 0
        job[LAYOUT], job[BASE] = layout[k], base[k]
        if fill.size:
            job[FILL] = fill[k]
        job[N_TILES] = ((job[HEIGHT] + tile_rows - 1) // tile_rows) * (
            (job[WIDTH] + tile_cols - 1) // tile_cols
        )
        job[MODES_AT], job[MODES_NBYTES], job[SCALES_AT], job[SCALES_NBYTES] = (
            modes_at,
            modes_nbytes[k],
            scales_at,
            scale_nbytes[k],
        )
        modes_at += modes_nbytes[k]
        scales_at += scale_nbytes[k]
        if offsets.size:
            job[START], job[END], job[N_PATCHES] = offsets[k], offsets[k + 1], n_patches[k]
            job[PATCHES_AT] = offsets[k + 1] - padded(4 * job[N_PATCHES])
            at = offsets[k] + padded(modes_nbytes[k]) + padded(scale_nbytes[k])
        for p in range(n_planes):
            plane = job[N_COLUMNS + p * PLANE_COLUMNS :]
            rans = coder[p, k] == CODER_RANS
            plane[CODER], plane[TABLE], plane[PREDICTION] = (
                coder[p, k],
                numbers[table[p, k]] if rans else table[p, k],
                prediction[p, k],
            )
            plain &= prediction[p, k] == 0
            contexts |= coder[p, k] == CODER_CONTEXT
            if offsets.size:
                plane[AT], plane[NBYTES] = at, stream_nbytes[p, k]
                at += stream_nbytes[p, k]
        suits = plain and layout[k] != LAYOUT_RAW and coder[0, k] == CODER_RANS
        if contexts:
            kinds[k] = WITH_CONTEXTS
        elif suits and job[HEIGHT] <= tile_rows and job[WIDTH] <= tile_cols:
            kinds[k] = of_pairs if layout[k] == LAYOUT_PAIRS else of_bytes
        else:
            kinds[k] = 0
    return n_used


# ---- words and planes --------------------------------------------------------------------------
# Words are bytes here. `split` and `merge` are the addresses of native functions (`words`) for
# words of their size.
@jit
def split_words(
    job: Any,
    shape: Any,
    data: Any,
    planes: Any,
    room: Any,
    side: Any,
    word_map: Any,
    addresses: Any,
    split: Any,
) -> None:
    """Byte planes of a segment in element order, `room` apart; `side` has room for its words, which
    narrow tiles need.
    """
    cols, tile_rows, tile_cols, word_nbytes = shape
    height, width = job[HEIGHT], job[WIDTH]
    start, at, narrow = job[ROW] * cols + job[COL], 0, tile_cols < width
    source, to, params, first = (
        data.ctypes.data,
        addresses.ctypes.data,
        word_map.ctypes.data,
        planes.ctypes.data,
    )
    for p in range(word_nbytes):
        addresses[p] = first + p * room
    if width == cols and tile_cols >= width:  # the segment's words lie side by side: one row
        height, width, tile_cols = 1, height * width, height * width
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(r, min(r + tile_rows, height)):
                a = (start + i * cols + c) * word_nbytes
                if narrow:
                    copy(
                        data[a : a + n * word_nbytes],
                        side[at * word_nbytes : (at + n) * word_nbytes],
                    )
                else:
                    call_5(split, source + a, to, at, n, params)
                at += n
    if narrow:
        call_5(split, side.ctypes.data, to, 0, at, params)


@jit
def merge_words(
    job: Any, shape: Any, addresses: Any, data: Any, side: Any, word_map: Any, merge: Any
) -> None:
    """Inverse of `split_words`; `addresses` are those of the planes, wherever each is."""
    cols, tile_rows, tile_cols, word_nbytes = shape
    height, width = job[HEIGHT], job[WIDTH]
    start, at, narrow = job[ROW] * cols + job[COL], 0, tile_cols < width
    target, planes, params = data.ctypes.data, addresses.ctypes.data, word_map.ctypes.data
    if narrow:
        call_5(merge, side.ctypes.data, planes, 0, height * width, params)
    if width == cols and tile_cols >= width:
        height, width, tile_cols = 1, height * width, height * width
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(r, min(r + tile_rows, height)):
                o = (start + i * cols + c) * word_nbytes
                if narrow:
                    copy(
                        side[at * word_nbytes : (at + n) * word_nbytes],
                        data[o : o + n * word_nbytes],
                    )
                else:
                    call_5(merge, target + o, planes, at, n, params)
                at += n


@jit
def _pack(plane: Any, n: Any, packed: Any, shift: Any, keep: Any, base: Any, fill: Any) -> Any:
    """Two 4-bit codes ``(value >> shift & keep) - base`` a byte.

    Returns how many are outside of 0 to 15: they become `fill`.
    """
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


@jit
def _unpack(packed: Any, plane: Any, keep: Any, shift: Any, base: Any) -> None:
    """Inverse of `_pack`: two bytes at once, in a uint16.

    They join the bits of `plane` in `keep`.
    """
    two, stay = plane.view(np.uint16), np.uint16(keep)
    add, s = np.uint16(base * 0x0101), np.uint32(shift) & np.uint32(7)
    for i in range(packed.size):
        v = np.uint32(packed[i])
        two[i] = np.uint16(
            (((v & np.uint32(15)) | (v & np.uint32(240)) << np.uint32(4)) << s)
            + (two[i] & stay)
            + add
        )


# ---- small things ------------------------------------------------------------------------------
@jit
def put(source: Any, record: Any, at: Any) -> Any:
    """Write bytes and their padding into a record; returns where the next part starts."""
    end = at + source.size
    copy(source, record[at:end])
    fill(record[end : padded(end)], 0)
    return padded(end)


# ---- histograms --------------------------------------------------------------------------------
@jit
def count(symbols: Any, four: Any, counts: Any) -> None:
    """Four counts a symbol, so that equal neighbours do not wait for each other."""
    fill(four, 0)
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


@kernel
def histogram_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    word_map: Any,
    data: Any,
    which: Any,
    mode: Any,
    base: Any,
    fill: Any,
    planes: Any,
    room: Any,
    side: Any,
    four: Any,
    natives: Any,
    counts: Any,
    addresses: Any,
    split: Any,
) -> None:
    """Counts of the symbols of jobs `first` to `last`: of pairs unless `base` is -1, and of byte
    planes `which`.
    """
    word_nbytes = shape[3]
    work, modes = planes[word_nbytes * room :], planes[:0]
    for k in range(first, last):
        job, at = jobs[k], 0
        n = job[HEIGHT] * job[WIDTH]
        half = (n + 1) // 2
        split_words(job, shape, data, planes, room, side, word_map, addresses, split)
        if base >= 0 and word_nbytes == 1:
            for i in range(which.size):
                _pack(planes, n, work, 4 - 4 * which[i], 15, 0, fill if which[i] == 0 else 0)
                count(work[:half], four, counts[k, i])
            continue
        if base >= 0:
            _pack(planes, n, work, 0, 255, base, fill)
            count(work[:half], four, counts[k, 0])
            at = 1
        for i in range(which.size):
            plane = planes[which[i] * room : which[i] * room + n]
            if mode != 0:
                make_residuals(job, shape, plane, work, mode, modes, natives)
                plane = work[:n]
            count(plane, four, counts[k, at + i])


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _put_patches(top: Any, n: Any, base: Any, record: Any, at: Any) -> Any:
    """Patches of the words outside the window; returns where they end.

    They are few: most blocks are passed over.
    """
    low = np.uint8(base)
    for start in range(0, n, 256):
        block, outside = top[start : min(start + 256, n)], np.uint8(0)
        for i in range(block.size):
            outside |= np.uint8(block[i] - low) & np.uint8(0xF0)
        if outside == 0:
            continue
        for i in range(start, start + block.size):
            if (np.int64(top[i]) - base) & 255 > 15:
                record[at] = np.uint8(i)
                record[at + 1] = np.uint8(i >> 8)
                record[at + 2] = np.uint8(i >> 16)
                record[at + 3] = top[i]
                at += 4
    fill(record[at : padded(at)], 0)
    return padded(at)


@kernel
def encode_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    word_map: Any,
    data: Any,
    modes: Any,
    coding: Any,
    entries: Any,
    tables: Any,
    planes: Any,
    room: Any,
    side: Any,
    stream_words: Any,
    stream_work: Any,
    sums: Any,
    record: Any,
    n_units: Any,
    n_patches: Any,
    addresses: Any,
    split: Any,
) -> Any:
    """Encode jobs `first` to `last` one behind another into `record`, which has room for the worst.

    Returns their bytes.
    """
    cols, word_nbytes = shape[0], shape[3]
    work, at = planes[word_nbytes * room :], 0
    for k in range(first, last):
        job, start = jobs[k], at
        height, width = job[HEIGHT], job[WIDTH]
        sum_words(sums, k, data, job[ROW], job[COL], height, width, cols, word_nbytes)
        n, row_nbytes = height * width, width * word_nbytes
        half = (n + 1) // 2
        if job[LAYOUT] == LAYOUT_RAW:
            for r in range(height):
                a = ((job[ROW] + r) * cols + job[COL]) * word_nbytes
                copy(data[a : a + row_nbytes], record[at : at + row_nbytes])
                at += row_nbytes
            fill(record[at : padded(at)], 0)
            at = padded(at)
            sum_record(sums, k, record[start:at])
            continue
        mode_at = job[MODES_AT]
        at = put(modes[mode_at : mode_at + job[MODES_NBYTES]], record, at)
        pairs, found = job[LAYOUT] == LAYOUT_PAIRS, 0
        split_words(job, shape, data, planes, room, side, word_map, addresses, split)
        n_planes = 2 if pairs and word_nbytes == 1 else word_nbytes
        for p in range(n_planes):
            plane = job[N_COLUMNS + p * PLANE_COLUMNS :]
            symbols, size, mode = planes[p * room : (p + 1) * room], n, plane[PREDICTION]
            if pairs and (p == 0 or word_nbytes == 1):
                symbols, size = work, half
                shift, keep = (4 - 4 * p, 15) if word_nbytes == 1 else (0, 255)
                found += _pack(planes, n, work, shift, keep, job[BASE], job[FILL] if p == 0 else 0)
            if plane[CODER] == CODER_RAW:
                at = put(symbols[:size], record, at)
            elif plane[CODER] == CODER_RANS:
                if mode != 0:
                    make_residuals(job, shape, symbols, work, mode, modes[mode_at:], stream_work[6])
                    symbols = work
                    if mode == PER_TILE:
                        mode_at += job[N_TILES]
                t = plane[TABLE]
                behind = encode_stream(
                    symbols,
                    size,
                    coding[t],
                    entries[t],
                    tables[t, 0],
                    tables[t, 1],
                    stream_words,
                    record,
                    at,
                    stream_work,
                )
                n_units[p, k] = (behind - at) // 16
                at = behind
        if found > 0:
            at = _put_patches(planes, n, job[BASE], record, at)
        n_patches[k] = found
        sum_record(sums, k, record[start:at])
    return at


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _patch(patches: Any, n: Any, top: Any) -> Any:
    """Set the bytes that lie outside the window.

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


@jit
def are_modes(modes: Any) -> Any:
    """Whether all bytes are modes (R7.1)."""
    good = True
    for i in range(modes.size):
        good &= modes[i] & 15 <= 4 and modes[i] >> 4 <= 2
    return good


@jit
def _decode_planes(
    job: Any,
    word_nbytes: Any,
    payload: Any,
    luts: Any,
    tables: Any,
    planes: Any,
    room: Any,
    addresses: Any,
    stream_work: Any,
) -> Any:
    """Planes as they are stored, codes unpacked; all streams before anything else, for a bad one
    goes before any other fault.
    """
    pairs, half, n = (
        job[LAYOUT] == LAYOUT_PAIRS,
        (job[HEIGHT] * job[WIDTH] + 1) // 2,
        job[HEIGHT] * job[WIDTH],
    )
    for p in range(2 if pairs and word_nbytes == 1 else word_nbytes):
        plane = job[N_COLUMNS + p * PLANE_COLUMNS :]
        at, packed = plane[AT], pairs and (p == 0 or word_nbytes == 1)
        size = half if packed else n
        target = planes[word_nbytes * room :] if packed else planes[p * room : (p + 1) * room]
        addresses[p] = planes[p * room :].ctypes.data
        if plane[CODER] == CODER_RANS:
            t = plane[TABLE]
            if not decode_stream(
                payload, at, plane[NBYTES], size, luts[t], tables[t, 0], target, stream_work
            ):
                return False
        elif plane[CODER] == CODER_CONSTANT:
            fill(target[:size], np.uint8(plane[TABLE]))
        elif packed:
            target = payload[at : at + size]
        else:
            addresses[p] = payload[at:].ctypes.data
        if packed:
            _unpack(
                target[:half],
                planes[: 2 * half],
                0xFFFF * p,
                4 if p == 0 and word_nbytes == 1 else 0,
                job[BASE],
            )
    return True


@jit
def _decode_one(
    job: Any,
    shape: Any,
    word_map: Any,
    payload: Any,
    luts: Any,
    tables: Any,
    planes: Any,
    room: Any,
    side: Any,
    work: Any,
    data: Any,
    addresses: Any,
    merge: Any,
) -> Any:
    """Decode a segment, and say how it went."""
    cols, _, _, word_nbytes = shape
    at, row_nbytes = job[START], job[WIDTH] * word_nbytes
    if job[LAYOUT] == LAYOUT_RAW:
        for r in range(job[ROW], job[ROW] + job[HEIGHT]):
            to = (r * cols + job[COL]) * word_nbytes
            copy(payload[at : at + row_nbytes], data[to : to + row_nbytes])
            at += row_nbytes
        return OK
    if not _decode_planes(job, word_nbytes, payload, luts, tables, planes, room, addresses, work):
        return BAD_STREAM
    modes = payload[at : at + job[MODES_NBYTES]]
    if not are_modes(modes):
        return BAD_TILE_MODE
    patches = payload[job[PATCHES_AT] : job[PATCHES_AT] + 4 * job[N_PATCHES]].view(np.uint32)
    if not _patch(patches, job[HEIGHT] * job[WIDTH], planes):
        return BAD_PATCH
    mode_at = 0
    for p in range(word_nbytes):
        mode = job[N_COLUMNS + p * PLANE_COLUMNS + PREDICTION]
        if mode != 0:
            plane = planes[p * room : (p + 1) * room]
            restore_tiles(job, shape, plane, mode, modes[mode_at:], work[6])
            if mode == PER_TILE:
                mode_at += job[N_TILES]
    merge_words(job, shape, addresses, data, side, word_map, merge)
    return OK


@kernel
def decode_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    word_map: Any,
    payload: Any,
    luts: Any,
    tables: Any,
    planes: Any,
    room: Any,
    side: Any,
    stream_work: Any,
    sums: Any,
    data: Any,
    status: Any,
    addresses: Any,
    merge: Any,
) -> None:
    """Decode jobs `first` to `last`, and say how each of them went."""
    for k in range(first, last):
        job = jobs[k]
        sum_record(sums, k, payload[job[START] : job[END]])
        status[k] = _decode_one(
            job,
            shape,
            word_map,
            payload,
            luts,
            tables,
            planes,
            room,
            side,
            stream_work,
            data,
            addresses,
            merge,
        )
        sum_words(sums, k, data, job[ROW], job[COL], job[HEIGHT], job[WIDTH], shape[0], shape[3])
