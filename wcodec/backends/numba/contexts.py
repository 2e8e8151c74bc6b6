"""Segments with a plane whose symbols have contexts. Spec: chapter 9.4.

The class of each symbol becomes a plane of bytes, in the order of the symbols. Otherwise as
`segments`, whose loops these are; a module of its own, so that they are compiled only where a file
has contexts.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba.arguments import (
    ContextMaps,
    DecodingTables,
    Encoded,
    EncodingTables,
    Heads,
    Matrix,
    Rooms,
)
from wcodec.backends.numba.arrays import copy, fill, padded
from wcodec.backends.numba.checksums import Crcs, sum_record, sum_words
from wcodec.backends.numba.job_records import Jobs
from wcodec.backends.numba.kernels import Bytes, Int, call_native, jit, kernel
from wcodec.backends.numba.planes import apply_patches, merge_words, patches_of, unpack_plane
from wcodec.backends.numba.prediction import are_modes
from wcodec.backends.numba.rans import (
    MAP,
    Streams,
    begin_by_class,
    decode_by_class,
    encode_by_class,
    ended_by_class,
)
from wcodec.backends.numba.rans_vectors import MAPPED
from wcodec.backends.numba.segments import (
    get_stored,
    is_packed,
    modes_of,
    n_stored_planes,
    plane_nbytes,
    range_encoder,
    restore_planes,
    room_of,
)
from wcodec.reference.planes import Layout
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder, Status
from wcodec.reference.tables import ContextKind

#: Beside `ContextKind`: a map of one class, which stands for one table (coder RANS). So all streams
#: of these segments have maps.
SINGLE: Final = 0
# Rooms after those of `segments` (two packed planes, residuals): classes, and two of scratch.
CLASSES: Final = 3
SPARE: Final = 4
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
    job: Any, matrix: Any, kind: Any, class_of: Any, scales: Any, out: Any, col_classes: Any
) -> None:
    """Classes of all elements by their places."""
    height, width, tile_rows, at = job.height, job.width, matrix.tile_rows, 0
    if kind == ContextKind.SCALE:
        for c in range(width):
            col_classes[c] = _two_bits(scales, height + c)
    for r in range(0, height, tile_rows):
        for c in range(0, width, matrix.tile_cols):
            n = min(matrix.tile_cols, width - c)
            for i in range(min(tile_rows, height - r)):
                if kind == ContextKind.POSITION:
                    _of_position(class_of, i, out[at : at + n])
                else:
                    row_class = np.int64(_two_bits(scales, r + i))
                    _of_scale(class_of, row_class, col_classes[c : c + n], out[at : at + n])
                at += n


@jit
def _of_bytes(class_of: Any, source: Any, out: Any, native: Any) -> None:
    """Classes by values; `native` is the address of `rans_vectors.mapper`, or 0."""
    done = 0
    if native != 0:
        done = source.size // MAPPED
        call_native(native, (source.ctypes.data, out.ctypes.data, class_of.ctypes.data, done))
        done *= MAPPED
    values, left = source[done:], out[done:]
    for i in range(values.size):
        left[i] = class_of[values[i]]


@jit
def _of_codes(class_of: Any, packed: Any, out: Any) -> None:
    """Classes by 4-bit values, two in each byte."""
    for i in range(packed.size):
        out[2 * i] = class_of[packed[i] & np.uint8(15)]
        out[2 * i + 1] = class_of[packed[i] >> np.uint8(4)]


@jit
def _find_classes(
    job: Any,
    matrix: Any,
    maps: Any,
    p: Any,
    scales: Any,
    first_plane: Any,
    rooms: Any,
    natives: Any,
) -> Any:
    """Class of each symbol of plane `p`, and 0 to the end of the last group (R9.13).

    `scales` are the record's, `first_plane` is plane 0, packed with layout PAIRS. The classes are
    in a room of their own.
    """
    packed, size = is_packed(job, matrix.word_nbytes, p), plane_nbytes(job, matrix.word_nbytes, p)
    m, spare = job.planes[p].table, matrix.word_nbytes + SPARE
    kind, class_of = maps.kind[m], maps.class_of[m]
    classes, elements = room_of(rooms, matrix.word_nbytes + CLASSES), room_of(rooms, spare)
    if kind == SINGLE:
        fill(classes[:size], 0)
    elif kind != ContextKind.PLANE:
        col_classes, out = room_of(rooms, spare + 1), elements if packed else classes
        _of_elements(job, matrix, kind, class_of, scales, out, col_classes)
        if packed:
            for i in range(size):
                classes[i] = elements[2 * i]
    elif job.layout == Layout.PAIRS and not packed:
        _of_codes(class_of, first_plane[: (size + 1) // 2], classes)
    else:
        _of_bytes(class_of, first_plane[:size], classes, natives[MAP])
    fill(classes[size : (size + GROUP - 1) // GROUP * GROUP], 0)
    return classes


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _put_stream(
    job: Any,
    matrix: Any,
    p: Any,
    symbols: Any,
    scales: Any,
    tables: Any,
    maps: Any,
    rooms: Any,
    streams: Any,
    record: Any,
    at: Any,
) -> Any:
    size, m = plane_nbytes(job, matrix.word_nbytes, p), job.planes[p].table
    first_plane = room_of(rooms, matrix.word_nbytes if job.layout == Layout.PAIRS else 0)
    classes = _find_classes(job, matrix, maps, p, scales, first_plane, rooms, streams.natives)
    words = rooms.stream_words
    return encode_by_class(symbols, size, tables, maps, m, classes, words, record, at, streams)


@jit
def _table_of(plane: Any, maps: Any) -> Any:
    m = plane.table
    if plane.coder != Coder.CONTEXT or maps.kind[m] != SINGLE:
        return np.int64(-1)
    return np.int64(maps.parts[m][0]) // 256


_encode_segments = range_encoder(_put_stream, _table_of)


@kernel
def encode_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    heads: Heads,
    tables: EncodingTables,
    maps: ContextMaps,
    rooms: Rooms,
    streams: Streams,
    crcs: Crcs,
    encoded: Encoded,
) -> Int:
    """As `segments.encode_range`, for segments of layout BYTES or PAIRS.

    `maps` are elements of `ContextMaps`, the entries of `tables` are words. Rooms are `N_ROOMS`
    more than a word has bytes.
    """
    return _encode_segments(
        first,
        last,
        jobs,
        Matrix(*matrix),
        Heads(*heads),
        EncodingTables(*tables),
        ContextMaps(*maps),
        Rooms(*rooms),
        Streams(*streams),
        Crcs(*crcs),
        Encoded(*encoded),
    )


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _rooms_of(rooms: Any, matrix: Any, i: Any) -> Any:
    """Rooms and addresses of the first or the second of two segments."""
    start = i * (matrix.word_nbytes + N_ROOMS) * rooms.size
    addresses = rooms.addresses[8 * i :]
    return Rooms(rooms.bytes[start:], rooms.size, rooms.words, addresses, rooms.stream_words)


@jit
def _begin_plane(
    job: Any,
    matrix: Any,
    p: Any,
    row: Any,
    payload: Any,
    luts: Any,
    maps: Any,
    rooms: Any,
    streams: Any,
) -> None:
    """Get a plane as it is stored, but only begin a stream."""
    word_nbytes, plane = matrix.word_nbytes, job.planes[p]
    packed, size = is_packed(job, word_nbytes, p), plane_nbytes(job, word_nbytes, p)
    target = room_of(rooms, word_nbytes + p if packed else p)
    rooms.addresses[p] = room_of(rooms, p).ctypes.data
    if plane.coder != Coder.CONTEXT:
        get_stored(plane, p, size, packed, payload, target, rooms.addresses)
        return
    first_plane = room_of(rooms, word_nbytes if job.layout == Layout.PAIRS else 0)
    if job.planes[0].coder == Coder.RAW:
        first_plane = payload[job.planes[0].offset :]
    scales = payload[job.start + padded(job.modes_nbytes) :][: job.scales_nbytes]
    classes = _find_classes(job, matrix, maps, p, scales, first_plane, rooms, streams.natives)
    stream = payload[plane.offset : plane.offset + plane.nbytes]
    begin_by_class(streams, row, stream, size, luts, maps, plane.table, classes, target)


@jit
def _is_due(job: Any, word_nbytes: Any, p: Any, late: Any, maps: Any, status: Any) -> Any:
    """Whether a plane is decoded now: a lower one with contexts late, any other one before."""
    if status != Status.OK or p >= n_stored_planes(job, word_nbytes):
        return False
    plane = job.planes[p]
    contexts = plane.coder == Coder.CONTEXT and maps.kind[plane.table] != SINGLE
    return late == (p > 0 and contexts)


@jit
def _decode_planes(
    jobs: Any,
    matrix: Any,
    late: Any,
    payload: Any,
    luts: Any,
    maps: Any,
    rooms: Any,
    streams: Any,
    status: Any,
) -> None:
    """Planes of one or two segments: if `late`, lower ones with contexts, else all others."""
    word_nbytes = matrix.word_nbytes
    for p in range(max(2, word_nbytes)):
        streams.params[0].n_groups, streams.params[1].n_groups = 0, 0
        for s in range(status.size):
            if _is_due(jobs[s], word_nbytes, p, late, maps, status[s]):
                own = _rooms_of(rooms, matrix, s)
                _begin_plane(jobs[s], matrix, p, s, payload, luts, maps, own, streams)
        decode_by_class(streams)
        for s in range(status.size):
            job, own = jobs[s], _rooms_of(rooms, matrix, s)
            if streams.params[s].n_groups > 0 and not ended_by_class(streams, s):
                status[s] = Status.BAD_STREAM
            elif is_packed(job, word_nbytes, p) and _is_due(
                job, word_nbytes, p, late, maps, status[s]
            ):
                unpack_plane(job, word_nbytes, p, room_of(own, word_nbytes + p), own.bytes)


@jit
def _restore_planes(
    job: Any, matrix: Any, late: Any, payload: Any, rooms: Any, natives: Any
) -> Any:
    """Undo the modes of plane 0, or if `late` of the others, and say how that went."""
    modes = modes_of(job, payload)
    if not are_modes(modes):
        return Status.BAD_TILE_MODE
    first, last = (1, matrix.word_nbytes) if late else (0, 1)
    restore_planes(job, matrix, first, last, modes, rooms, natives)
    return Status.OK


@jit
def _merge_planes(job: Any, matrix: Any, payload: Any, rooms: Any) -> Any:
    """Make words of the planes of a segment, and say how that went."""
    if not apply_patches(patches_of(job, payload), job.height * job.width, rooms.bytes):
        return Status.BAD_PATCH
    merge_words(job, matrix, rooms.words, rooms.addresses)
    return Status.OK


@kernel
def decode_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    payload: Bytes,
    tables: DecodingTables,
    maps: ContextMaps,
    rooms: Rooms,
    streams: Streams,
    crcs: Crcs,
    status: Bytes,
) -> None:
    """As `segments.decode_range`, for segments of layout BYTES or PAIRS.

    They are decoded two at a time, so that one's latency hides behind the other's. Lower planes
    with contexts come last, for plane 0 may hold their contexts. `maps` are elements of
    `ContextMaps`. Rooms are twice `N_ROOMS` more than a word has bytes.
    """
    matrix, luts, maps = Matrix(*matrix), DecodingTables(*tables).luts, ContextMaps(*maps)
    rooms, streams, crcs = Rooms(*rooms), Streams(*streams), Crcs(*crcs)
    for a in range(first, last, 2):
        pair, verdicts = jobs[a : min(a + 2, last)], status[a : min(a + 2, last)]
        for s in range(len(pair)):
            verdicts[s] = Status.OK
            sum_record(crcs, a + s, payload[pair[s].start : pair[s].end])
        for late in (False, True):
            _decode_planes(pair, matrix, late, payload, luts, maps, rooms, streams, verdicts)
            for s in range(len(pair)):
                if verdicts[s] == Status.OK:
                    job, own, natives = pair[s], _rooms_of(rooms, matrix, s), streams.natives
                    verdicts[s] = _restore_planes(job, matrix, late, payload, own, natives)
        for s in range(len(pair)):
            if verdicts[s] == Status.OK:
                verdicts[s] = _merge_planes(pair[s], matrix, payload, _rooms_of(rooms, matrix, s))
            sum_words(crcs, a + s, pair[s], matrix)
