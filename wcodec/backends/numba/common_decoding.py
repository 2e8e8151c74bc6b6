"""Segments of the common kinds (`kinds.KINDS`): decoded.

Some are decoded together, so that one's latency hides behind the others'. Symbols are merged with
lower planes while they are in the first cache. Compiled only where `ir.VARIANT` is not ``"plain"``.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.backends.numba.arguments import DecodingTables, Matrix, Rooms
from wcodec.backends.numba.arrays import copy, fill
from wcodec.backends.numba.checksums import (
    OF_GROUPS,
    OF_PAIRS,
    Crcs,
    crc_after,
    row_factors_of,
    share_of_lanes,
    sum_record,
    sum_words,
)
from wcodec.backends.numba.job_records import Jobs
from wcodec.backends.numba.kernels import (
    Bytes,
    Bytes2,
    Int,
    call_native,
    fence,
    jit,
    kernel,
)
from wcodec.backends.numba.merge import ALIGNED, Merges
from wcodec.backends.numba.planes import patches_of
from wcodec.backends.numba.rans import (
    DECODE_1,
    DECODE_2,
    DECODE_TOGETHER,
    Streams,
    begin_decoding,
    code_groups,
    decode_rows,
    ended_well,
    take_groups,
)
from wcodec.backends.numba.rans_vectors import TOGETHER
from wcodec.backends.numba.segments import lut_of, n_stored_planes, plane_nbytes, room_of
from wcodec.reference.planes import Layout
from wcodec.reference.rans import GROUP
from wcodec.reference.segments import Coder, Status

GROUPS_AHEAD: Final = 4  #: how far ahead of the stores their cache lines are asked for
BLOCK: Final = 8  #: groups decoded, then merged
FEW: Final = 32  #: patches whose part in the CRC-32 is found one by one
ENDLESS: Final = 1 << 40  #: groups of a row without end
# Three rooms for the lower planes of each segment, and then room for the words of all.
LOWER: Final = 3
N_ROOMS: Final = TOGETHER * LOWER


class Merging(NamedTuple):
    """What merging needs, for segments that are decoded together.

    Attributes
    ----------
    params
        Records of type `merge.MERGE`.
    symbols
        uint8 of shape (TOGETHER, BLOCK * 128): a block of symbols.
    lanes
        uint8 of shape (TOGETHER, `merge.LANES_NBYTES`): what has been folded for the CRC-32.
    """

    params: Merges
    symbols: Bytes2
    lanes: Bytes2


# ---- lower planes ------------------------------------------------------------------------------
@jit
def _lower_plane(job: Any, word_nbytes: Any, s: Any, p: Any, payload: Any, rooms: Any) -> Any:
    """Bytes of a lower plane: in the payload if it is raw, or in a room."""
    size, at = plane_nbytes(job, word_nbytes, p), job.planes[p].offset
    if job.planes[p].coder == Coder.RAW:
        return payload[at : at + size]
    return room_of(rooms, LOWER * s + p - 1)[:size]


@jit
def _begin_stream(s: Any, plane: Any, payload: Any, tables: Any, streams: Any) -> None:
    """Begin the stream of a plane in row `s`."""
    readable, t = payload[plane.offset :], plane.table
    begin_decoding(streams, s, readable, plane.nbytes, lut_of(tables, t), tables.prob_bits[t])


@jit
def _decode_lower_planes(
    n: Any,
    jobs: Any,
    matrix: Any,
    payload: Any,
    tables: Any,
    rooms: Any,
    merging: Any,
    streams: Any,
    status: Any,
) -> None:
    """Decode the lower planes of `n` segments together, and set the status of bad ones."""
    for p in range(1, n_stored_planes(jobs[0], matrix.word_nbytes)):
        for s in range(n):
            job = jobs[s]
            plane, room = job.planes[p], room_of(rooms, LOWER * s + p - 1)
            size = plane_nbytes(job, matrix.word_nbytes, p)
            streams.params[s].n_groups = 0
            if plane.coder == Coder.CONSTANT:
                fill(room[:size], np.uint8(plane.table))
            elif plane.coder == Coder.RANS:
                _begin_stream(s, plane, payload, tables, streams)
                streams.params[s].target = room.ctypes.data
                streams.params[s].n_groups = (size + GROUP - 1) // GROUP
            lower = _lower_plane(job, matrix.word_nbytes, s, p, payload, rooms)
            merging.params[s].lower[p - 1] = lower.ctypes.data
        decode_rows(streams, n)
        for s in range(n):
            if jobs[s].planes[p].coder == Coder.RANS and not ended_well(streams, s):
                status[s] = Status.BAD_STREAM


# ---- whole groups ------------------------------------------------------------------------------
@jit
def _group_words(job: Any) -> Any:
    """Words of a group of symbols."""
    return 2 * GROUP if job.layout == Layout.PAIRS else GROUP


@jit
def _is_direct(job: Any, matrix: Any) -> Any:
    """Whether words are merged into the matrix: rows are whole groups, or lie side by side."""
    return job.width == matrix.cols or job.width % _group_words(job) == 0


@jit
def _target(job: Any, matrix: Any, s: Any, rooms: Any) -> Any:
    """Where the first word of a segment goes: into the matrix, or beside it."""
    if _is_direct(job, matrix):
        return matrix.data[(job.row * matrix.cols + job.col) * matrix.word_nbytes :]
    words = rooms.bytes[N_ROOMS * rooms.size :]
    return words[s * (words.size // TOGETHER) :]


@jit
def _begin_segment(
    s: Any,
    job: Any,
    matrix: Any,
    payload: Any,
    tables: Any,
    rooms: Any,
    merging: Any,
    streams: Any,
    crcs: Any,
) -> None:
    """Begin plane 0, and what merges it with lower planes."""
    params, lanes = merging.params[s], merging.lanes[s]
    _begin_stream(s, job.planes[0], payload, tables, streams)
    fill(lanes, 0)
    params.lanes = lanes.ctypes.data
    step = OF_PAIRS if job.layout == Layout.PAIRS else OF_GROUPS
    params.row_factors = row_factors_of(job, matrix, crcs, step).ctypes.data
    params.target = _target(job, matrix, s, rooms).ctypes.data
    group, jump = _group_words(job), (matrix.cols - job.width) * matrix.word_nbytes
    in_rows = jump != 0 and _is_direct(job, matrix)
    params.row_groups = job.width // group if in_rows else ENDLESS
    params.row_jump, params.left, params.base = jump, params.row_groups, job.base
    rows_apart = jump if params.row_groups == 1 else 0
    params.ahead = GROUPS_AHEAD * (group * matrix.word_nbytes + rows_apart)
    params.native = matrix.native
    aligned = (params.target | jump) % ALIGNED == 0
    if params.streaming != 0 and aligned and _is_direct(job, matrix):
        params.native = params.streaming
    streams.params[s].n_groups = job.height * job.width // group


@jit
def _decode_and_merge(n_rows: Any, n: Any, merging: Any, streams: Any, decoder: Any) -> None:
    """Decode the groups that `n` streams share, of as many of the first rows as can be, and merge
    each block of them while it is in the first cache. A decoder that is 0 does nothing.
    """
    if decoder == 0:
        return
    for first in range(0, n_rows - n + 1, n):
        n_groups = take_groups(streams, first, n)
        for done in range(0, n_groups, BLOCK):
            n_block = min(BLOCK, n_groups - done)
            for s in range(first, first + n):
                streams.params[s].target = merging.symbols[s].ctypes.data
                merging.params[s].symbols = streams.params[s].target
            code_groups(streams, first, n_block, decoder, streams.expansion)
            for s in range(first, first + n):
                call_native(merging.params[s].native, (merging.params[s:].ctypes.data, n_block))


# ---- what is left ------------------------------------------------------------------------------
@jit
def _merge_tail(first: Any, job: Any, matrix: Any, symbols: Any, lower: Any, target: Any) -> None:
    """Words of a segment from `first` on, out of its last group, which is not a whole one."""
    word_map, nbytes, pairs = matrix.word_map, matrix.word_nbytes, job.layout == Layout.PAIRS
    up, stay, sign, flip, down = word_map[0], word_map[1], word_map[2], word_map[3], word_map[4]
    for i in range(first, job.height * job.width):
        j = i - first
        nibble = np.uint64(4 * (i % 2))  # `first` is even
        w = np.uint64(symbols[j])
        if pairs:
            w = (np.uint64(symbols[j // 2]) >> nibble) & np.uint64(15)
            if nbytes == 1:
                half = (np.uint64(lower[0][i // 2]) >> nibble) & np.uint64(15)
                w = w << np.uint64(4) | half
            else:
                w = (w + np.uint64(job.base)) & np.uint64(255)
        for p in range(1, nbytes):
            w = w << np.uint64(8) | np.uint64(lower[p - 1][i])
        w = (((w >> np.uint64(1)) & up) | (w & stay) | ((w & sign) << down)) ^ flip
        for p in range(nbytes):
            target[i * nbytes + p] = np.uint8(w >> np.uint64(8 * p))


@jit
def _patch_words(
    patches: Any, job: Any, matrix: Any, target: Any, row_nbytes: Any, crcs: Any, n_after: Any
) -> Any:
    """Set the exponents that lie outside the window, of 8 bits, in words that are merged.

    Parameters
    ----------
    row_nbytes
        Bytes from a row of `target` to the next.
    n_after
        0, or the bytes from the start of `target` to the end of the matrix.

    Returns
    -------
    Whether the indices are right, and if `n_after` is not 0, what the new bytes change in the CRC
    of the matrix without initial state.
    """
    before: Any = -1
    crc, slices, nbytes = np.uint32(0), crcs.slices, matrix.word_nbytes
    for i in range(patches.size):
        index = np.int64(patches[i]) & 0xFFFFFF
        if index <= before or index >= job.height * job.width:
            return False, crc
        before = index
        at = index // job.width * row_nbytes + (index % job.width + 1) * nbytes
        exponent = np.uint8(patches[i] >> np.uint32(24))
        high = (target[at - 1] & np.uint8(128)) | (exponent >> np.uint8(1))
        low = (target[at - 2] & np.uint8(127)) | np.uint8(exponent << np.uint8(7))
        if n_after > 0:
            change = slices[0, low ^ target[at - 2]]
            second = (change ^ np.uint32(high ^ target[at - 1])) & np.uint32(255)
            change = change >> np.uint32(8) ^ slices[0, second]
            crc ^= crc_after(change, n_after - at, slices, crcs.shifts)
        target[at - 1], target[at - 2] = high, low
    return True, crc


@jit
def _end_segment(
    k: Any,
    s: Any,
    job: Any,
    matrix: Any,
    payload: Any,
    rooms: Any,
    merging: Any,
    streams: Any,
    crcs: Any,
) -> Any:
    """Merge what is left of a segment after its whole groups, and say how decoding went."""
    nbytes, target, group = matrix.word_nbytes, _target(job, matrix, s, rooms), _group_words(job)
    first = job.height * job.width // group * group
    direct, whole = _is_direct(job, matrix), first == job.height * job.width
    row_nbytes = (matrix.cols if direct else job.width) * nbytes
    if not whole:
        streams.params[s].target = merging.symbols[s].ctypes.data
        code_groups(streams, s, 1, streams.natives[DECODE_1], streams.expansion)
        lower = (
            _lower_plane(job, nbytes, s, 1, payload, rooms),
            _lower_plane(job, nbytes, s, 2, payload, rooms),
            _lower_plane(job, nbytes, s, 3, payload, rooms),
        )
        _merge_tail(first, job, matrix, merging.symbols[s], lower, target)
    if not ended_well(streams, s):
        return Status.BAD_STREAM
    patches = patches_of(job, payload)
    folded = direct and whole and crcs.words.size > 0 and patches.size <= FEW
    n_after = target.size if folded else 0
    good, change = _patch_words(patches, job, matrix, target, row_nbytes, crcs, n_after)
    if not good:
        return Status.BAD_PATCH
    if not direct:
        for r in range(job.height):
            at = ((job.row + r) * matrix.cols + job.col) * nbytes
            copy(target[r * row_nbytes : (r + 1) * row_nbytes], matrix.data[at : at + row_nbytes])
    if folded:
        crcs.words[k] = change ^ share_of_lanes(merging.lanes[s], job, matrix, crcs)
    else:
        sum_words(crcs, k, job, matrix)
    return Status.OK


@kernel
def decode_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    payload: Bytes,
    tables: DecodingTables,
    rooms: Rooms,
    merging: Merging,
    streams: Streams,
    crcs: Crcs,
    status: Bytes,
) -> None:
    """As `segments.decode_range`, for segments of one common kind.

    `merging` are elements of `Merging`. Rooms are `N_ROOMS`, and one more for each byte of
    `TOGETHER` words.
    """
    matrix, tables, rooms = Matrix(*matrix), DecodingTables(*tables), Rooms(*rooms)
    merging, streams, crcs = Merging(*merging), Streams(*streams), Crcs(*crcs)
    natives = streams.natives
    for a in range(first, last, TOGETHER):
        n = min(TOGETHER, last - a)
        fill(status[a : a + n], Status.OK)
        shared = payload, tables, rooms, merging, streams
        _decode_lower_planes(n, jobs[a:], matrix, *shared, status[a:])
        for s in range(n):
            _begin_segment(s, jobs[a + s], matrix, *shared, crcs)
        _decode_and_merge(n, TOGETHER, merging, streams, natives[DECODE_TOGETHER])
        _decode_and_merge(n, 2, merging, streams, natives[DECODE_2])
        _decode_and_merge(n, 1, merging, streams, natives[DECODE_1])
        for s in range(n):
            # now that it is in the cache
            sum_record(crcs, a + s, payload[jobs[a + s].start : jobs[a + s].end])
            if status[a + s] == Status.OK:
                status[a + s] = _end_segment(
                    a + s, s, jobs[a + s], matrix, payload, rooms, merging, streams, crcs
                )
    if merging.params[0].streaming != 0:
        fence()
