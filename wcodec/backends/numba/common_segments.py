"""Segments of the common kinds (`rans_vectors.KINDS`), two at a time, so that one's latency hides
behind the other's.

Words are split as vectors before they are counted or encoded; decoded symbols are merged with lower
planes while in the first cache. Compiled only where `ir.VARIANT` is not ``"plain"``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba import merge as mg
from wcodec.backends.numba import rans_vectors as v
from wcodec.backends.numba import segments as nk
from wcodec.backends.numba import split as sp
from wcodec.backends.numba.checksums import crc_behind, crc_of_lanes, sum_record, sum_words
from wcodec.backends.numba.compiling import call_2, jit, kernel
from wcodec.backends.numba.prediction import make_residuals
from wcodec.backends.numba.rans import (  # fmt: skip
    DECODE_1,
    DECODE_2,
    ENCODE_1,
    ENCODE_2,
    GROUP,
    begin,
    begin_encoding,
    copy,
    decode_groups,
    decode_stream,
    encode_groups,
    encode_stream,
    end_encoding,
    ended,
    fill,
)

GROUPS_AHEAD: Final = 4  #: how far ahead of the stores their cache lines are asked for
ROWS_AHEAD: Final = 8  #: of the words that are split
BLOCK: Final = 8  #: groups decoded, then merged
FEW: Final = 32  #: patches whose part in the CRC-32 is found one by one
MANY: Final = 1 << 40  #: groups of a row without end


# ---- splitting, counting -----------------------------------------------------------------------
# A segment's share of `planes` is SHARE rooms: symbols, three lower planes, patches of four bytes
# each.
SHARE: Final = 8


@jit
def _split(
    job: Any,
    shape: Any,
    data: Any,
    planes: Any,
    room: Any,
    rows: Any,
    params: Any,
    pairs: Any,
    function: Any,
) -> Any:
    """Split a segment into its share of `planes`. Returns the number of patches.

    `rows` has room for its words: they are put side by side there if a row is not a whole number of
    steps.
    """
    cols, word_nbytes = shape[0], shape[3]
    height, width = job[nk.HEIGHT], job[nk.WIDTH]
    n, at, row_nbytes = (
        height * width,
        (job[nk.ROW] * cols + job[nk.COL]) * word_nbytes,
        width * word_nbytes,
    )
    n_steps, row_steps = (n + sp.STEP - 1) // sp.STEP, MANY
    if width % sp.STEP == 0:
        params[sp.SOURCE], row_steps = data[at:].ctypes.data, width // sp.STEP
    elif width == cols and n % sp.STEP == 0:
        params[sp.SOURCE] = data[at:].ctypes.data
    else:
        for r in range(height):
            a = at + r * cols * word_nbytes
            copy(data[a : a + row_nbytes], rows[r * row_nbytes : (r + 1) * row_nbytes])
        params[sp.SOURCE] = rows.ctypes.data
    for p in range(5):
        params[sp.SYMBOLS + p] = planes[p * room :].ctypes.data
    params[sp.ROW_STEPS], params[sp.ROW_JUMP] = row_steps, (cols - width) * word_nbytes
    params[sp.BASE], params[sp.FILL] = job[nk.BASE], job[nk.FILL]
    params[sp.AHEAD] = ROWS_AHEAD * cols * word_nbytes if row_steps == width // sp.STEP else 0
    call_2(function, params.ctypes.data, n_steps)
    if pairs and n % 2:  # the missing neighbour
        planes[n // 2] = (planes[n // 2] & 15) | job[nk.FILL] << 4
        if word_nbytes == 1:
            planes[room + n // 2] &= 15
    n_patches, patches = params[sp.N_PATCHES], planes[4 * room : 8 * room].view(np.uint32)
    # behind the last word
    while n_patches > 0 and np.int64(patches[n_patches - 1]) & 0xFFFFFF >= n:
        n_patches -= 1
    return n_patches


@jit
def _count_tops(pairs: Any, n: Any, base: Any, code: Any, patches: Any, tops: Any) -> None:
    """Counts of top bytes, from those of pairs and the patches."""
    fill(tops, 0)
    for low in range(16):
        for high in range(16):
            tops[base + low] += pairs[16 * high + low]
            tops[base + high] += pairs[16 * high + low]
    tops[base + code] -= n % 2 + patches.size
    for i in range(patches.size):
        tops[patches[i] >> np.uint32(24)] += 1


@kernel
def histogram_fused_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    data: Any,
    which: Any,
    mode: Any,
    base: Any,
    code: Any,
    planes: Any,
    room: Any,
    rows: Any,
    params: Any,
    four: Any,
    natives: Any,
    counts: Any,
    splitter: Any,
) -> None:
    """As `segments.histogram_range`, for segments of a single tile."""
    word_nbytes, pairs = shape[3], base >= 0
    work, modes, patches = (
        planes[(SHARE - 1) * room :],
        planes[:0],
        planes[4 * room : SHARE * room].view(np.uint32),
    )
    for k in range(first, last):
        job = jobs[k]
        n = job[nk.HEIGHT] * job[nk.WIDTH]
        job[nk.BASE], job[nk.FILL] = max(0, base), code
        n_patches = _split(job, shape, data, planes, room, rows, params, pairs, splitter)
        size, own = (n + 1) // 2 if pairs else n, counts[k]
        if pairs and word_nbytes == 1:
            for i in range(which.size):
                nk.count(planes[which[i] * room : which[i] * room + size], four, own[i])
            continue
        if pairs:
            nk.count(planes[:size], four, own[0])
            own = own[1:]
        for i in range(which.size):
            plane = planes[which[i] * room : which[i] * room + n]
            if pairs and which[i] == 0:
                _count_tops(counts[k, 0], n, base, code, patches[:n_patches], own[i])
            elif mode != 0:
                make_residuals(job, shape, plane, work, mode, modes, natives)
                nk.count(work[:n], four, own[i])
            else:
                nk.count(plane, four, own[i])


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _put_planes(
    job: Any,
    word_nbytes: Any,
    planes: Any,
    room: Any,
    at: Any,
    coding: Any,
    entries: Any,
    tables: Any,
    stream_words: Any,
    record: Any,
    work: Any,
    n_units: Any,
    segment: Any,
) -> Any:
    """Write all planes but the first into a record; returns where the next part starts."""
    n = job[nk.HEIGHT] * job[nk.WIDTH]
    nibbles = word_nbytes == 1 and job[nk.LAYOUT] == nk.LAYOUT_PAIRS
    size = (n + 1) // 2 if nibbles else n
    for p in range(1, 2 if nibbles else word_nbytes):
        plane, symbols = (
            job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS :],
            planes[p * room : (p + 1) * room],
        )
        if plane[nk.CODER] == nk.CODER_RAW:
            at = nk.put(symbols[:size], record, at)
        elif plane[nk.CODER] == nk.CODER_RANS:
            t = plane[nk.TABLE]
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
                work,
            )
            n_units[p, segment] = (behind - at) // 16
            at = behind
    return at


@kernel
def encode_fused_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    data: Any,
    coding: Any,
    entries: Any,
    tables: Any,
    planes: Any,
    room: Any,
    rows: Any,
    params: Any,
    stream_words: Any,
    work: Any,
    sums: Any,
    record: Any,
    n_units: Any,
    n_patches: Any,
    splitter: Any,
) -> Any:
    """As `segments.encode_range`, for segments that all suit a kind; `splitter` is its native
    function.
    """
    word_nbytes, at = shape[3], 0
    pairs = jobs[first, nk.LAYOUT] == nk.LAYOUT_PAIRS
    half_words, n_groups = stream_words.size // 2, np.zeros(2, np.int64)
    for a in range(first, last, 2):
        two = min(2, last - a)
        for s in range(two):
            job, own = jobs[a + s], planes[s * SHARE * room :]
            n_patches[a + s] = _split(job, shape, data, own, room, rows, params, pairs, splitter)
            sum_words(
                sums,
                a + s,
                data,
                job[nk.ROW],
                job[nk.COL],
                job[nk.HEIGHT],
                job[nk.WIDTH],
                shape[0],
                word_nbytes,
            )
            n, t = job[nk.HEIGHT] * job[nk.WIDTH], job[nk.N_COLUMNS + nk.TABLE]
            size = (n + 1) // 2 if pairs else n
            n_groups[s] = begin_encoding(
                work,
                s,
                own,
                size,
                entries[t],
                tables[t, 0],
                tables[t, 1],
                stream_words[s * half_words :],
            )
        both = min(n_groups[0], n_groups[1]) if two == 2 else 0
        for s in range(two):  # the last groups come first
            work[0][s, v.SYMBOLS] += both * GROUP
            encode_groups(work, s, n_groups[s] - both, work[6][ENCODE_1])
            work[0][s, v.SYMBOLS] -= both * GROUP
        encode_groups(work, 0, both, work[6][ENCODE_2])
        for s in range(two):
            start = at
            behind = end_encoding(work, s, stream_words[s * half_words :], record, at)
            n_units[0, a + s] = (behind - at) // 16
            own = planes[s * SHARE * room : (s + 1) * SHARE * room]
            at = _put_planes(
                jobs[a + s], word_nbytes, own, room, behind, coding, entries, tables,
                stream_words[s * half_words :], record, work, n_units, a + s,
            )  # fmt: skip
            if n_patches[a + s]:
                at = nk.put(own[4 * room : 4 * room + 4 * np.int64(n_patches[a + s])], record, at)
            sum_record(sums, a + s, record[start:at])
    return at


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _lower_plane(
    job: Any, p: Any, size: Any, payload: Any, luts: Any, tables: Any, target: Any, work: Any
) -> Any:
    """Bytes of a lower plane, in the payload or decoded to `target`; empty if its stream is bad."""
    plane = job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS :]
    at, t = plane[nk.AT], plane[nk.TABLE]
    if plane[nk.CODER] == nk.CODER_RAW:
        return payload[at : at + size]
    if plane[nk.CODER] == nk.CODER_CONSTANT:
        fill(target[:size], np.uint8(t))
    elif not decode_stream(
        payload, at, plane[nk.NBYTES], size, luts[t], tables[t, 0], target, work
    ):
        return target[:0]
    return target[:size]


@jit
def _tail(
    symbols: Any,
    first: Any,
    n: Any,
    pairs: Any,
    base: Any,
    word_nbytes: Any,
    word_map: Any,
    lower: Any,
    target: Any,
) -> None:
    """Words `first` to `n` of a segment, out of its last group, which is not a whole one."""
    up, stay, sign, flip, down = word_map[0], word_map[1], word_map[2], word_map[3], word_map[4]
    for i in range(first, n):
        j = i - first
        if pairs:
            code = (np.uint64(symbols[j // 2]) >> np.uint64(4 * (j % 2))) & np.uint64(15)
            if word_nbytes == 1:
                w = code << np.uint64(4) | (
                    (np.uint64(lower[0][i // 2]) >> np.uint64(4 * (i % 2))) & np.uint64(15)
                )
            else:
                w = (code + np.uint64(base)) & np.uint64(255)
        else:
            w = np.uint64(symbols[j])
        for p in range(1, word_nbytes):
            w = w << np.uint64(8) | np.uint64(lower[p - 1][i])
        w = (((w >> np.uint64(1)) & up) | (w & stay) | ((w & sign) << down)) ^ flip
        for p in range(word_nbytes):
            target[i * word_nbytes + p] = np.uint8(w >> np.uint64(8 * p))


@jit
def _patches(
    patches: Any,
    n: Any,
    width: Any,
    word_nbytes: Any,
    target: Any,
    row_nbytes: Any,
    behind: Any,
    sums: Any,
) -> Any:
    """Set the exponents that lie outside the window; PAIRS has 8-bit ones here.

    Returns whether the indices are right, and what the new bytes change in the CRC without initial
    state, if `behind`, the bytes from `target` to the end of all, is not 0.
    """
    before: Any = -1
    crc, slices, shifts = np.uint32(0), sums[0], sums[1]
    for i in range(patches.size):
        index = np.int64(patches[i]) & 0xFFFFFF
        if index <= before or index >= n:
            return False, crc
        before = index
        at = index // width * row_nbytes + (index % width + 1) * word_nbytes
        exponent = np.uint8(patches[i] >> np.uint32(24))
        high = (target[at - 1] & np.uint8(128)) | (exponent >> np.uint8(1))
        low = (target[at - 2] & np.uint8(127)) | np.uint8(exponent << np.uint8(7))
        if behind > 0:
            change = slices[0, low ^ target[at - 2]]
            change = (
                change >> np.uint32(8)
                ^ slices[0, (change ^ np.uint32(high ^ target[at - 1])) & np.uint32(255)]
            )
            crc ^= crc_behind(change, behind - at, slices, shifts)
        target[at - 1], target[at - 2] = high, low
    return True, crc


@jit
def _decode_and_merge(
    work: Any,
    row: Any,
    n_rows: Any,
    n_groups: Any,
    symbols: Any,
    merging: Any,
    decoder: Any,
    merger: Any,
) -> None:
    """Decode groups of one stream, or of this and the next, a block at a time, and merge each block
    while it is in the first cache.
    """
    done = 0
    while done < n_groups:
        n = min(BLOCK, n_groups - done)
        for s in range(row, row + n_rows):
            work[0][s, v.TARGET] = merging[s, mg.SYMBOLS] = symbols[s].ctypes.data
        decode_groups(work, row, n, decoder)
        for s in range(row, row + n_rows):
            call_2(merger, merging[s].ctypes.data, n)
        done += n


@kernel
def decode_fused_range(
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
    words: Any,
    symbols: Any,
    merging: Any,
    lanes: Any,
    work: Any,
    sums: Any,
    out: Any,
    status: Any,
    merger: Any,
) -> None:
    """As `segments.decode_range`, for segments that all suit a kind (`rans_vectors.KINDS`);
    `merger` is its native function.

    `planes` has room for six planes, `words` for the words of two segments, `symbols` for a block
    of each. `merging` and `lanes` are parameters and sums of `merge`.
    """
    cols, word_nbytes = shape[0], shape[3]
    pairs = jobs[first, nk.LAYOUT] == nk.LAYOUT_PAIRS
    n_lower = 1 if pairs and word_nbytes == 1 else word_nbytes - 1
    group = 2 * GROUP if pairs else GROUP
    empty = planes[:0]
    half_words = words.size // 2
    for a in range(first, last, 2):
        n_full, two = np.zeros(2, np.int64), min(2, last - a)
        lower0, lower1 = [empty, empty, empty], [empty, empty, empty]
        for s in range(two):
            job, lower = jobs[a + s], lower0 if s == 0 else lower1
            n, width = job[nk.HEIGHT] * job[nk.WIDTH], job[nk.WIDTH]
            size = (n + 1) // 2 if pairs and word_nbytes == 1 else n
            status[a + s] = nk.OK
            sum_record(sums, a + s, payload[job[nk.START] : job[nk.END]])
            for p in range(n_lower):
                target = planes[(3 * s + p) * room : (3 * s + p + 1) * room]
                lower[p] = _lower_plane(job, p + 1, size, payload, luts, tables, target, work)
                merging[s, mg.LOWER + p] = lower[p].ctypes.data
                if lower[p].size == 0:
                    status[a + s] = nk.BAD_STREAM
            if status[a + s] != nk.OK:
                continue
            plane = job[nk.N_COLUMNS :]
            t = plane[nk.TABLE]
            begin(work, s, payload, plane[nk.AT], plane[nk.NBYTES], luts[t], tables[t, 0])
            start = (job[nk.ROW] * cols + job[nk.COL]) * word_nbytes
            side_by_side = width == cols
            direct = side_by_side or width % group == 0
            fill(lanes[s], 0)
            merging[s, mg.LANES] = lanes[s].ctypes.data
            merging[s, mg.OVER] = sums[2][2 if job[nk.COL] + width < cols else 3].ctypes.data
            merging[s, mg.TARGET] = (
                out[start:].ctypes.data if direct else words[s * half_words :].ctypes.data
            )
            merging[s, mg.ROW_GROUPS] = MANY if side_by_side or not direct else width // group
            merging[s, mg.ROW_JUMP] = (cols - width) * word_nbytes
            rows_apart = merging[s, mg.ROW_JUMP] if merging[s, mg.ROW_GROUPS] == 1 else 0
            merging[s, mg.AHEAD] = GROUPS_AHEAD * (group * word_nbytes + rows_apart)
            merging[s, mg.LEFT], merging[s, mg.BASE] = merging[s, mg.ROW_GROUPS], job[nk.BASE]
            n_full[s] = n // group
        both = 0
        if two == 2 and status[a] == nk.OK and status[a + 1] == nk.OK:
            both = min(n_full[0], n_full[1])
            _decode_and_merge(work, 0, 2, both, symbols, merging, work[6][DECODE_2], merger)
        for s in range(two):
            if status[a + s] != nk.OK:
                continue
            job, lower = jobs[a + s], lower0 if s == 0 else lower1
            n, width = job[nk.HEIGHT] * job[nk.WIDTH], job[nk.WIDTH]
            _decode_and_merge(
                work, s, 1, n_full[s] - both, symbols, merging, work[6][DECODE_1], merger
            )
            direct = width == cols or width % group == 0
            start = (job[nk.ROW] * cols + job[nk.COL]) * word_nbytes
            target = out[start:] if direct else words[s * half_words : (s + 1) * half_words]
            row_nbytes = cols * word_nbytes if direct else width * word_nbytes
            if n % group:
                work[0][s, v.TARGET] = symbols[s].ctypes.data
                decode_groups(work, s, 1, work[6][DECODE_1])
                _tail(
                    symbols[s],
                    n_full[s] * group,
                    n,
                    pairs,
                    job[nk.BASE],
                    word_nbytes,
                    word_map,
                    lower,
                    target,
                )
            if not ended(work, s):
                status[a + s] = nk.BAD_STREAM
                continue
            patches = payload[job[nk.PATCHES_AT] : job[nk.PATCHES_AT] + 4 * job[nk.N_PATCHES]].view(
                np.uint32
            )
            folded = direct and n % group == 0 and sums[5].size > 0 and patches.size <= FEW
            good, change = _patches(
                patches,
                n,
                width,
                word_nbytes,
                target,
                row_nbytes,
                out.size - start if folded else 0,
                sums,
            )
            if not good:
                status[a + s] = nk.BAD_PATCH
            elif not direct:
                for r in range(job[nk.HEIGHT]):
                    to = start + r * cols * word_nbytes
                    copy(target[r * row_nbytes : (r + 1) * row_nbytes], out[to : to + row_nbytes])
            if folded:
                end = start + ((job[nk.HEIGHT] - 1) * cols + width) * word_nbytes
                sums[5][a + s] = change ^ crc_of_lanes(lanes[s], out.size - end, sums[0], sums[1])
            else:
                sum_words(
                    sums,
                    a + s,
                    out,
                    job[nk.ROW],
                    job[nk.COL],
                    job[nk.HEIGHT],
                    width,
                    cols,
                    word_nbytes,
                )
