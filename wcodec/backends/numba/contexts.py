"""Segments with a plane whose symbols have contexts. Spec: chapter 9.4.

The class of each symbol becomes a plane of bytes, in the order of the symbols. As `segments`
otherwise, whose loops these are; a module of its own, so that files without contexts do not compile
it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba import segments as nk
from wcodec.backends.numba.checksums import sum_record, sum_words
from wcodec.backends.numba.compiling import call_4, jit, kernel
from wcodec.backends.numba.prediction import PER_TILE, make_residuals, restore_tiles
from wcodec.backends.numba.rans import (  # fmt: skip
    GROUP,
    MAP,
    begin_by_class,
    copy,
    decode_by_class,
    encode_by_class,
    ended_by_class,
    fill,
    padded,
)
from wcodec.backends.numba.rans_vectors import MAPPED

# Copies of the reference's enumeration, and what stands for one table, with coder RANS: a map of
# one class. So here all streams have maps.
SINGLE, PLANE, POSITION, SCALE = 0, 1, 2, 3
# Maps are a tuple: the kind of each, the class of 256 contexts, where the part of each of 16
# classes begins in the tables, and the prob_bits and the filling.
KIND, CLASS_OF, PARTS, OWN = range(4)
#: Rooms in `planes` behind the byte planes: packed planes 0 and 1, residuals, classes, and two of
#: scratch for these.
WORK, CLASSES, SPARE = 2, 3, 4
N_ROOMS: Final = 6


# ---- classes -----------------------------------------------------------------------------------
@jit
def _of_position(class_of: Any, row: Any, out: Any) -> None:
    """Classes of a row of a tile."""
    own, n = class_of[8 * (row & 7) : 8 * (row & 7) + 8], min(8, out.size)
    copy(own[:n], out[:n])
    copy(out[: out.size - n], out[n:])  # goes on with what it has written


@jit
def _of_scale(class_of: Any, row_class: Any, col_classes: Any, out: Any) -> None:
    """Classes of a row, given those of the columns."""
    own = class_of[4 * row_class : 4 * row_class + 4]
    zero, one, two, three = own[0], own[1], own[2], own[3]
    for c in range(out.size):
        x = col_classes[c]
        low, high = zero if x == 0 else one, two if x == 2 else three
        out[c] = low if x < 2 else high


@jit
def _two_bits(packed: Any, i: Any) -> Any:
    return packed[i >> 2] >> np.uint8(2 * (i & 3)) & np.uint8(3)


@jit
def _of_elements(
    job: Any, shape: Any, kind: Any, class_of: Any, scales: Any, out: Any, col_classes: Any
) -> None:
    """Classes of all elements by their places."""
    _, tile_rows, tile_cols, _ = shape
    height, width, at = job[nk.HEIGHT], job[nk.WIDTH], 0
    if kind == SCALE:
        for c in range(width):
            col_classes[c] = _two_bits(scales, height + c)
    for r in range(0, height, tile_rows):
        for c in range(0, width, tile_cols):
            n = min(tile_cols, width - c)
            for i in range(min(tile_rows, height - r)):
                if kind == POSITION:
                    _of_position(class_of, i, out[at : at + n])
                else:
                    _of_scale(
                        class_of,
                        np.int64(_two_bits(scales, r + i)),
                        col_classes[c : c + n],
                        out[at : at + n],
                    )
                at += n


@jit
def _of_bytes(class_of: Any, source: Any, out: Any, function: Any) -> None:
    """Classes by values; `function` is native, or 0."""
    done = 0
    if function != 0:
        done = source.size // MAPPED
        call_4(function, source.ctypes.data, out.ctypes.data, class_of.ctypes.data, done)
        done *= MAPPED
    values, left = source[done:], out[done:]
    for i in range(values.size):
        left[i] = class_of[values[i]]


@jit
def _classes(
    job: Any,
    shape: Any,
    maps: Any,
    number: Any,
    packed: Any,
    scales: Any,
    first: Any,
    out: Any,
    spare: Any,
    room: Any,
    natives: Any,
) -> None:
    """Class of each symbol of a plane, and 0 to the end of the last group (R9.13).

    `packed` says that the plane's symbols are of two elements, `first` is plane 0, packed with
    layout PAIRS.
    """
    kind, class_of, n = maps[KIND][number], maps[CLASS_OF][number], job[nk.HEIGHT] * job[nk.WIDTH]
    half = (n + 1) // 2
    size = half if packed else n
    if kind == SINGLE:
        fill(out[:size], 0)
    elif kind != PLANE:
        _of_elements(job, shape, kind, class_of, scales, spare if packed else out, spare[room:])
        if packed:
            for i in range(size):
                out[i] = spare[2 * i]
    elif job[nk.LAYOUT] == nk.LAYOUT_PAIRS and not packed:
        for i in range(half):
            out[2 * i], out[2 * i + 1] = (
                class_of[first[i] & np.uint8(15)],
                class_of[first[i] >> np.uint8(4)],
            )
    else:
        _of_bytes(class_of, first[:size], out, natives[MAP])
    fill(out[size : (size + GROUP - 1) // GROUP * GROUP], 0)


# ---- encoding ----------------------------------------------------------------------------------
@kernel
def encode_context_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    word_map: Any,
    data: Any,
    modes: Any,
    scales: Any,
    coding: Any,
    entries: Any,
    maps: Any,
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
    """As `segments.encode_range`, for segments of layout BYTES or PAIRS; `entries` are words."""
    cols, word_nbytes = shape[0], shape[3]
    rooms, at = planes[word_nbytes * room :], 0
    work, classes = (
        rooms[WORK * room : (WORK + 1) * room],
        rooms[CLASSES * room : (CLASSES + 1) * room],
    )
    for k in range(first, last):
        job, start = jobs[k], at
        sum_words(
            sums,
            k,
            data,
            job[nk.ROW],
            job[nk.COL],
            job[nk.HEIGHT],
            job[nk.WIDTH],
            cols,
            word_nbytes,
        )
        n = job[nk.HEIGHT] * job[nk.WIDTH]
        half, mode_at = (n + 1) // 2, job[nk.MODES_AT]
        own_scales = scales[job[nk.SCALES_AT] : job[nk.SCALES_AT] + job[nk.SCALES_NBYTES]]
        at = nk.put(modes[mode_at : mode_at + job[nk.MODES_NBYTES]], record, at)
        at = nk.put(own_scales, record, at)
        pairs, found = job[nk.LAYOUT] == nk.LAYOUT_PAIRS, 0
        nk.split_words(job, shape, data, planes, room, side, word_map, addresses, split)
        for p in range(2 if pairs and word_nbytes == 1 else word_nbytes):
            plane = job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS :]
            symbols, size, mode, packed = (
                planes[p * room : (p + 1) * room],
                n,
                plane[nk.PREDICTION],
                pairs and (p == 0 or word_nbytes == 1),
            )
            if packed:
                symbols, size = rooms[p * room : (p + 1) * room], half
                shift, keep = (4 - 4 * p, 15) if word_nbytes == 1 else (0, 255)
                found += nk._pack(
                    planes, n, symbols, shift, keep, job[nk.BASE], job[nk.FILL] if p == 0 else 0
                )
            coder, t = plane[nk.CODER], plane[nk.TABLE]
            if coder == nk.CODER_CONSTANT:
                continue
            if coder == nk.CODER_RAW:
                at = nk.put(symbols[:size], record, at)
                continue
            first_plane = rooms if pairs else planes
            _classes(
                job,
                shape,
                maps,
                t,
                packed,
                own_scales,
                first_plane,
                classes,
                rooms[SPARE * room :],
                room,
                stream_work[6],
            )
            if mode != 0:
                make_residuals(job, shape, symbols, work, mode, modes[mode_at:], stream_work[6])
                symbols = work
                if mode == PER_TILE:
                    mode_at += job[nk.N_TILES]
            own = maps[OWN][t]
            behind = encode_by_class(
                symbols,
                size,
                coding,
                entries,
                maps[PARTS][t],
                classes,
                own[0],
                own[1],
                stream_words,
                record,
                at,
                stream_work,
            )
            n_units[p, k] = (behind - at) // 16
            at = behind
        if found > 0:
            at = nk._put_patches(planes, n, job[nk.BASE], record, at)
        n_patches[k] = found
        sum_record(sums, k, record[start:at])
    return at


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _begin_plane(
    job: Any,
    shape: Any,
    p: Any,
    row: Any,
    payload: Any,
    luts: Any,
    maps: Any,
    planes: Any,
    room: Any,
    addresses: Any,
    work: Any,
) -> Any:
    """A plane as it is stored, but a stream is only begun: returns its symbols, or 0."""
    word_nbytes, pairs, n = (
        shape[3],
        job[nk.LAYOUT] == nk.LAYOUT_PAIRS,
        job[nk.HEIGHT] * job[nk.WIDTH],
    )
    plane, packed = (
        job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS :],
        pairs and (p == 0 or word_nbytes == 1),
    )
    rooms, size, at, t = (
        planes[word_nbytes * room :],
        (n + 1) // 2 if packed else n,
        plane[nk.AT],
        plane[nk.TABLE],
    )
    target = rooms[p * room : (p + 1) * room] if packed else planes[p * room : (p + 1) * room]
    addresses[p] = planes[p * room :].ctypes.data
    if plane[nk.CODER] == nk.CODER_CONTEXT:
        classes, first = rooms[CLASSES * room : (CLASSES + 1) * room], rooms if pairs else planes
        if job[nk.N_COLUMNS + nk.CODER] == nk.CODER_RAW:
            first = payload[job[nk.N_COLUMNS + nk.AT] :]
        scales = payload[job[nk.START] + padded(job[nk.MODES_NBYTES]) :][: job[nk.SCALES_NBYTES]]
        _classes(
            job,
            shape,
            maps,
            t,
            packed,
            scales,
            first,
            classes,
            rooms[SPARE * room :],
            room,
            work[6],
        )
        begin_by_class(
            work,
            row,
            payload,
            at,
            plane[nk.NBYTES],
            size,
            luts,
            maps[PARTS][t],
            classes,
            maps[OWN][t, 0],
            target,
        )
        return size
    if plane[nk.CODER] == nk.CODER_CONSTANT:
        fill(target[:size], np.uint8(t))
    elif packed:
        copy(payload[at : at + size], target[:size])
    else:
        addresses[p] = payload[at:].ctypes.data
    return 0


@jit
def _end_plane(job: Any, word_nbytes: Any, p: Any, planes: Any, room: Any) -> None:
    """Unpack its codes, if it has such."""
    if job[nk.LAYOUT] == nk.LAYOUT_PAIRS and (p == 0 or word_nbytes == 1):
        half = (job[nk.HEIGHT] * job[nk.WIDTH] + 1) // 2
        packed = planes[(word_nbytes + p) * room :][:half]
        nk._unpack(
            packed,
            planes[: 2 * half],
            0xFFFF * p,
            4 if p == 0 and word_nbytes == 1 else 0,
            job[nk.BASE],
        )


@jit
def _decode_planes(
    jobs: Any,
    shape: Any,
    late: Any,
    payload: Any,
    luts: Any,
    maps: Any,
    planes: Any,
    room: Any,
    addresses: Any,
    work: Any,
    status: Any,
) -> None:
    """All planes of one or two segments, or, if `late`, lower ones with contexts, or else all but
    these.
    """
    word_nbytes, own = shape[3], (shape[3] + N_ROOMS) * room
    symbols = np.zeros(2, np.int64)
    for p in range(max(2, word_nbytes)):
        for s in range(status.size):
            job = jobs[s]
            there = p < word_nbytes or (p == 1 and job[nk.LAYOUT] == nk.LAYOUT_PAIRS)
            plane = job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS :]
            context = (
                there
                and plane[nk.CODER] == nk.CODER_CONTEXT
                and maps[KIND][plane[nk.TABLE]] != SINGLE
            )
            symbols[s] = -1
            if status[s] == nk.OK and there and late == (p > 0 and context):
                symbols[s] = _begin_plane(
                    job,
                    shape,
                    p,
                    s,
                    payload,
                    luts,
                    maps,
                    planes[s * own :],
                    room,
                    addresses[8 * s :],
                    work,
                )
        decode_by_class(work, max(0, symbols[0]), max(0, symbols[1]) if status.size > 1 else 0)
        for s in range(status.size):
            if symbols[s] > 0 and not ended_by_class(work, s):
                status[s] = nk.BAD_STREAM
            elif symbols[s] >= 0:
                _end_plane(jobs[s], word_nbytes, p, planes[s * own :], room)


@jit
def _restore(
    job: Any, shape: Any, lower: Any, modes: Any, planes: Any, room: Any, natives: Any
) -> None:
    """Undo the modes of plane 0, or of all lower ones."""
    mode_at = 0
    for p in range(shape[3]):
        mode = job[nk.N_COLUMNS + p * nk.PLANE_COLUMNS + nk.PREDICTION]
        if mode != 0 and (p > 0) == lower:
            plane = planes[p * room : (p + 1) * room]
            restore_tiles(job, shape, plane, mode, modes[mode_at:], natives)
        if mode == PER_TILE:
            mode_at += job[nk.N_TILES]


@kernel
def decode_context_range(
    first: Any,
    last: Any,
    jobs: Any,
    shape: Any,
    word_map: Any,
    payload: Any,
    luts: Any,
    maps: Any,
    planes: Any,
    room: Any,
    side: Any,
    work: Any,
    sums: Any,
    data: Any,
    status: Any,
    addresses: Any,
    merge: Any,
) -> None:
    """As `segments.decode_range`, for segments of layout BYTES or PAIRS, two at a time, so that
    one's latency hides behind the other's. Lower planes with contexts come last, for plane 0 may
    hold their contexts.
    """
    own = (shape[3] + N_ROOMS) * room
    for a in range(first, last, 2):
        b = min(a + 2, last)
        for k in range(a, b):
            status[k] = nk.OK
            sum_record(sums, k, payload[jobs[k, nk.START] : jobs[k, nk.END]])
        for late in (False, True):
            _decode_planes(
                jobs[a:b],
                shape,
                late,
                payload,
                luts,
                maps,
                planes,
                room,
                addresses,
                work,
                status[a:b],
            )
            for k in range(a, b):
                modes = payload[jobs[k, nk.START] : jobs[k, nk.START] + jobs[k, nk.MODES_NBYTES]]
                if status[k] == nk.OK and not nk.are_modes(modes):
                    status[k] = nk.BAD_TILE_MODE
                if status[k] == nk.OK:
                    _restore(jobs[k], shape, late, modes, planes[(k - a) * own :], room, work[6])
        for k in range(a, b):
            job, mine = jobs[k], planes[(k - a) * own :]
            patches = payload[job[nk.PATCHES_AT] : job[nk.PATCHES_AT] + 4 * job[nk.N_PATCHES]].view(
                np.uint32
            )
            if status[k] == nk.OK and not nk._patch(patches, job[nk.HEIGHT] * job[nk.WIDTH], mine):
                status[k] = nk.BAD_PATCH
            if status[k] == nk.OK:
                nk.merge_words(job, shape, addresses[8 * (k - a) :], data, side, word_map, merge)
            sum_words(
                sums,
                k,
                data,
                job[nk.ROW],
                job[nk.COL],
                job[nk.HEIGHT],
                job[nk.WIDTH],
                shape[0],
                shape[3],
            )
