"""Segments whose words come straight out of the decoder: symbols are merged with raw lower planes while in registers.

Two segments at a time. Compiled only where `numba_ir.VARIANT` is not ``"plain"``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends import numba_kernels as k
from wcodec.backends import numba_vector as v
from wcodec.backends.numba_streams import GROUP, begin, copy, decode_stream, ended, fill, jit, kernel

GROUPS_AHEAD: Final = 4  #: how far ahead of the stores their cache lines are asked for
MANY: Final = 1 << 40  #: groups of a row without end


@jit
def _lower_plane(job: Any, p: Any, size: Any, payload: Any, luts: Any, tables: Any, target: Any, work: Any) -> Any:
    """Bytes of a lower plane, in the payload or decoded to `target`; empty if its stream is bad."""
    plane = job[k.N_COLUMNS + p * k.PLANE_COLUMNS :]
    at, t = plane[k.AT], plane[k.TABLE]
    if plane[k.CODER] == k.CODER_RAW:
        return payload[at : at + size]
    if plane[k.CODER] == k.CODER_CONSTANT:
        fill(target[:size], np.uint8(t))
    elif not decode_stream(payload, at, plane[k.NBYTES], size, luts[t], tables[t, 0], target, work):
        return target[:0]
    return target[:size]


@jit
def _tail(symbols: Any, first: Any, n: Any, pairs: Any, base: Any, word_nbytes: Any, word_map: Any, lower: Any, target: Any) -> None:
    """Words `first` to `n` of a segment, out of its last group, which is not a whole one."""
    up, stay, sign, flip, down = word_map[0], word_map[1], word_map[2], word_map[3], word_map[4]
    for i in range(first, n):
        j = i - first
        if pairs:
            code = (np.uint64(symbols[j // 2]) >> np.uint64(4 * (j % 2))) & np.uint64(15)
            if word_nbytes == 1:
                w = code << np.uint64(4) | ((np.uint64(lower[0][i // 2]) >> np.uint64(4 * (i % 2))) & np.uint64(15))
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
def _patches(patches: Any, n: Any, width: Any, word_nbytes: Any, target: Any, row_nbytes: Any) -> Any:
    """Set the exponents that lie outside the window; PAIRS has 8-bit ones here. Returns whether the indices are right."""
    before: Any = -1
    for i in range(patches.size):
        index = np.int64(patches[i]) & 0xFFFFFF
        if index <= before or index >= n:
            return False
        before = index
        at = index // width * row_nbytes + (index % width + 1) * word_nbytes
        exponent = np.uint8(patches[i] >> np.uint32(24))
        target[at - 1] = (target[at - 1] & np.uint8(128)) | (exponent >> np.uint8(1))
        target[at - 2] = (target[at - 2] & np.uint8(127)) | np.uint8(exponent << np.uint8(7))
    return True


@jit
def _run(work: Any, row: Any, first: Any, last: Any, word_group: Any, lower_group: Any, kind: Any) -> None:
    """Decode groups `first` to `last` of one stream, the ones before having been done together with another stream."""
    params = work[0][row]
    in_row = params[v.ROW_GROUPS]
    rows, over = first // in_row, first % in_row
    params[v.TARGET] += rows * params[v.ROW_JUMP] + first * word_group
    params[v.LEFT] = in_row - over
    for p in range(3):
        params[v.LOWER + p] += first * lower_group
    v.decode_groups_1(work[0][row:], work[1][row:], work[4], last - first, kind)


@kernel
def decode_fused_range(
    first: Any, last: Any, jobs: Any, shape: Any, word_map: Any, payload: Any, luts: Any, tables: Any,
    planes: Any, room: Any, words: Any, work: Any, out: Any, status: Any, kind: Any,
) -> None:  # fmt: skip
    """As `numba_kernels.decode_range`, for segments that all suit the fused kernel `kind` (`numba_vector.KINDS`).

    `planes` has room for six planes, `words` for the words of two segments.
    """
    cols, word_nbytes = shape[0], shape[3]
    params, pairs = work[0], jobs[first, k.LAYOUT] == k.LAYOUT_PAIRS
    n_lower = 1 if pairs and word_nbytes == 1 else word_nbytes - 1
    group = 2 * GROUP if pairs else GROUP
    lower_group = GROUP if word_nbytes == 1 else group
    empty = planes[:0]
    half_words = words.size // 2
    for a in range(first, last, 2):
        n_full, two = np.zeros(2, np.int64), min(2, last - a)
        lower0, lower1 = [empty, empty, empty], [empty, empty, empty]
        for s in range(two):
            job, lower = jobs[a + s], lower0 if s == 0 else lower1
            n, width = job[k.HEIGHT] * job[k.WIDTH], job[k.WIDTH]
            size = (n + 1) // 2 if pairs and word_nbytes == 1 else n
            status[a + s] = k.OK
            for p in range(n_lower):
                target = planes[(3 * s + p) * room : (3 * s + p + 1) * room]
                lower[p] = _lower_plane(job, p + 1, size, payload, luts, tables, target, work)
                params[s, v.LOWER + p] = lower[p].ctypes.data
                if lower[p].size == 0:
                    status[a + s] = k.BAD_STREAM
            if status[a + s] != k.OK:
                continue
            plane = job[k.N_COLUMNS :]
            t = plane[k.TABLE]
            begin(work, s, payload, plane[k.AT], plane[k.NBYTES], luts[t], tables[t, 0])
            start = (job[k.ROW] * cols + job[k.COL]) * word_nbytes
            side_by_side = width == cols
            direct = side_by_side or width % group == 0
            params[s, v.TARGET] = out[start:].ctypes.data if direct else words[s * half_words :].ctypes.data
            params[s, v.ROW_GROUPS] = MANY if side_by_side or not direct else width // group
            params[s, v.ROW_JUMP] = (cols - width) * word_nbytes
            rows_apart = params[s, v.ROW_JUMP] if params[s, v.ROW_GROUPS] == 1 else 0
            params[s, v.AHEAD] = GROUPS_AHEAD * (group * word_nbytes + rows_apart)
            params[s, v.LEFT], params[s, v.BASE] = params[s, v.ROW_GROUPS], job[k.BASE]
            n_full[s] = n // group
        both = 0
        if two == 2 and status[a] == k.OK and status[a + 1] == k.OK:
            both = min(n_full[0], n_full[1])
            v.decode_groups_2(work[0], work[1], work[4], both, kind)
        for s in range(two):
            if status[a + s] != k.OK:
                continue
            job, lower = jobs[a + s], lower0 if s == 0 else lower1
            n, width = job[k.HEIGHT] * job[k.WIDTH], job[k.WIDTH]
            if n_full[s] > both:
                _run(work, s, both, n_full[s], group * word_nbytes, lower_group, kind)
            direct = width == cols or width % group == 0
            start = (job[k.ROW] * cols + job[k.COL]) * word_nbytes
            target = out[start:] if direct else words[s * half_words : (s + 1) * half_words]
            row_nbytes = cols * word_nbytes if direct else width * word_nbytes
            if n % group:
                symbols = planes[6 * room : 6 * room + GROUP]
                params[s, v.TARGET] = symbols.ctypes.data
                v.decode_groups_1(work[0][s:], work[1][s:], work[4], 1, ())
                _tail(symbols, n_full[s] * group, n, pairs, job[k.BASE], word_nbytes, word_map, lower, target)
            if not ended(work, s):
                status[a + s] = k.BAD_STREAM
                continue
            patches = payload[job[k.PATCHES_AT] : job[k.PATCHES_AT] + 4 * job[k.N_PATCHES]].view(np.uint32)
            if not _patches(patches, n, width, word_nbytes, target, row_nbytes):
                status[a + s] = k.BAD_PATCH
            elif not direct:
                for r in range(job[k.HEIGHT]):
                    to = start + r * cols * word_nbytes
                    copy(target[r * row_nbytes : (r + 1) * row_nbytes], out[to : to + row_nbytes])
