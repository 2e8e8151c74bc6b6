"""Segments of the common kinds (`kinds.KINDS`): counted and encoded.

Words are split as vectors before they are counted or encoded. Two segments are encoded at a time,
plane by plane, so that one's latency hides behind the other's. Compiled only where `ir.VARIANT` is
not ``"plain"``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba.arguments import Counted, Encoded, EncodingTables, Matrix, Rooms
from wcodec.backends.numba.arrays import copy, count, fill, put
from wcodec.backends.numba.checksums import Crcs, sum_record, sum_words
from wcodec.backends.numba.job_records import Jobs
from wcodec.backends.numba.kernels import Int, Ints, Ints3, UInts32, call_native, jit, kernel
from wcodec.backends.numba.planes import is_uncoded
from wcodec.backends.numba.rans import (
    ENCODE_1,
    ENCODE_2,
    ENCODING_ROWS,
    Streams,
    begin_encoding,
    code_groups,
    end_encoding,
)
from wcodec.backends.numba.segments import (
    count_plane,
    n_stored_planes,
    plane_nbytes,
    room_of,
)
from wcodec.backends.numba.split import STEP, Splitting
from wcodec.reference.planes import Layout
from wcodec.reference.rans import GROUP, UNIT
from wcodec.reference.segments import Coder

ROWS_AHEAD: Final = 8  #: how far ahead cache lines of the words are asked for
ENDLESS: Final = 1 << 40  #: steps of a row without end
# A segment has a share of rooms: symbols, three lower planes, patches of four bytes each.
SHARE: Final = 8
PATCHES: Final = 4


# ---- splitting ---------------------------------------------------------------------------------
@jit
def _share_of(rooms: Any, s: Any) -> Any:
    """Rooms of the first or the second of two segments."""
    share = rooms.bytes[s * SHARE * rooms.size : (s + 1) * SHARE * rooms.size]
    return Rooms(share, rooms.size, rooms.words, rooms.addresses, rooms.stream_words)


@jit
def _patch_room(share: Any) -> Any:
    """Room for patches, uint32."""
    return share.bytes[PATCHES * share.size : SHARE * share.size].view(np.uint32)


@jit
def _place_words(job: Any, matrix: Any, beside: Any, params: Any) -> None:
    """Say where the words of a segment are.

    They are put side by side in `beside` if a row is not a whole number of steps.
    """
    nbytes, n, jump = matrix.word_nbytes, job.height * job.width, matrix.cols - job.width
    at, row_nbytes = (job.row * matrix.cols + job.col) * nbytes, job.width * nbytes
    params.row_steps, params.row_jump, params.ahead = ENDLESS, jump * nbytes, 0
    params.source = matrix.data.ctypes.data + at
    if job.width % STEP == 0:
        params.row_steps = job.width // STEP
        params.ahead = ROWS_AHEAD * matrix.cols * nbytes
    elif jump != 0 or n % STEP != 0:
        for r in range(job.height):
            row = matrix.data[at + r * matrix.cols * nbytes :][:row_nbytes]
            copy(row, beside[r * row_nbytes : (r + 1) * row_nbytes])
        params.source = beside.ctypes.data


@jit
def _split(job: Any, matrix: Any, share: Any, beside: Any, splitting: Any, uncoded: Any) -> Any:
    """Split a segment into its share of rooms. Returns the number of patches.

    `splitting` is one record of type `split.SPLIT`, `beside` has room for the words, `uncoded` is
    the address of what the table of plane 0 does not code, or 0.
    """
    params, n, planes = splitting[0], job.height * job.width, share.bytes
    _place_words(job, matrix, beside, params)
    params.symbols = planes.ctypes.data
    for p in range(3):
        params.lower[p] = params.symbols + (1 + p) * share.size
    params.patches = params.symbols + PATCHES * share.size
    params.base, params.fill, params.uncoded = job.base, job.fill, uncoded
    call_native(matrix.native, (splitting.ctypes.data, (n + STEP - 1) // STEP))
    if n % 2 and job.layout == Layout.PAIRS:  # the missing neighbour
        planes[n // 2] = (planes[n // 2] & 15) | job.fill << 4
        if matrix.word_nbytes == 1:
            planes[share.size + n // 2] &= 15
    n_patches, patches = params.n_patches, _patch_room(share)
    # those of what follows the last word
    while n_patches > 0 and np.int64(patches[n_patches - 1]) & 0xFFFFFF >= n:
        n_patches -= 1
    return n_patches


# ---- histograms --------------------------------------------------------------------------------
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
def histogram_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    counted: Counted,
    rooms: Rooms,
    splitting: Splitting,
    four: UInts32,
    natives: Ints,
    counts: Ints3,
) -> None:
    """As `segments.histogram_range`, for segments of a single tile.

    `splitting` is one record of type `split.SPLIT`. Rooms are `SHARE` more than a word has bytes.
    """
    matrix, counted, rooms = Matrix(*matrix), Counted(*counted), Rooms(*rooms)
    pairs, base, nibbles = counted.base >= 0, counted.base, matrix.word_nbytes == 1
    work, beside = rooms.bytes[(SHARE - 1) * rooms.size :], rooms.bytes[SHARE * rooms.size :]
    for k in range(first, last):
        job, own = jobs[k], counts[k]
        n, half = job.height * job.width, (job.height * job.width + 1) // 2
        job.base, job.fill = max(0, base), counted.fill
        job.layout = Layout.PAIRS if pairs else Layout.BYTES
        n_patches = _split(job, matrix, rooms, beside, splitting, 0)
        if pairs and not nibbles:
            count(rooms.bytes[:half], four, own[0])
            own = own[1:]
        for i in range(counted.planes.size):
            p = counted.planes[i]
            plane = room_of(rooms, p)
            if pairs and nibbles:
                count(plane[:half], four, own[i])
            elif pairs and p == 0:
                patches = _patch_room(rooms)[:n_patches]
                _count_tops(counts[k, 0], n, base, counted.fill, patches, own[i])
            else:
                for m in range(counted.modes.size):
                    own = counts[m * len(jobs) + k]
                    mode, to = counted.modes[m], own[own.shape[0] - counted.planes.size + i]
                    count_plane(job, matrix, mode, plane, work, four, natives, to)


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _end_pairs(job: Any, share: Any, n_patches: Any, uncoded: Any) -> Any:
    """The last pair of an odd number of words, whose second code has become `fill` after all; see
    `planes.coded_pair`. Returns the number of patches.
    """
    n, base, stand_in, patches = job.height * job.width, job.base, job.fill, _patch_room(share)
    at, last = n // 2, np.int64(patches[max(0, n_patches - 1)])
    patched = n_patches > 0 and last & 0xFFFFFF == n - 1
    top = last >> 24 if patched else (base + (np.int64(share.bytes[at]) & 15)) & 255
    code = (top - base) & 255
    if code > 15:
        return n_patches
    pair = code | stand_in << 4
    if is_uncoded(pair, uncoded):
        share.bytes[at] = np.uint8(stand_in | stand_in << 4)
        n_patches += not patched
        patches[n_patches - 1] = np.uint32(top << 24 | (n - 1))
        return n_patches
    share.bytes[at] = np.uint8(pair)
    return n_patches - patched


@jit
def _split_to_encode(
    job: Any, matrix: Any, tables: Any, share: Any, beside: Any, splitting: Any
) -> Any:
    """As `_split`, with pairs that the table of plane 0 codes."""
    plane, n = job.planes[0], job.height * job.width
    if job.layout != Layout.PAIRS or matrix.word_nbytes == 1 or plane.coder != Coder.RANS:
        return _split(job, matrix, share, beside, splitting, 0)
    uncoded = tables.uncoded[plane.table]
    n_patches = _split(job, matrix, share, beside, splitting, uncoded.ctypes.data)
    return _end_pairs(job, share, n_patches, uncoded) if n % 2 else n_patches


@jit
def _words_of(rooms: Any, row: Any) -> Any:
    """Room for the words of the stream of a row."""
    return rooms.stream_words[row * (rooms.stream_words.size // ENCODING_ROWS) :]


@jit
def _begin_streams(s: Any, job: Any, matrix: Any, tables: Any, rooms: Any, streams: Any) -> None:
    """Begin to encode the planes of a split segment: plane p in row ``2 * p + s``."""
    share = _share_of(rooms, s)
    for p in range(n_stored_planes(job, matrix.word_nbytes)):
        row, t = 2 * p + s, job.planes[p].table
        streams.params[row].n_groups = 0
        if job.planes[p].coder == Coder.RANS:
            symbols, size = room_of(share, p), plane_nbytes(job, matrix.word_nbytes, p)
            bits, padding, words = tables.prob_bits[t], tables.padding[t], _words_of(rooms, row)
            begin_encoding(streams, row, symbols, size, tables.entries[t], bits, padding, words)


@jit
def _encode_rows(first: Any, n: Any, streams: Any) -> None:
    """Encode the streams of one or two rows, those of two together where both have groups."""
    both = 0
    if n == 2:
        both = min(streams.params[first].n_groups, streams.params[first + 1].n_groups)
    for row in range(first, first + n):  # the last groups come first
        params = streams.params[row]
        params.source += both * GROUP
        code_groups(
            streams, row, params.n_groups - both, streams.natives[ENCODE_1], streams.compression
        )
        params.source -= both * GROUP
    code_groups(streams, first, both, streams.natives[ENCODE_2], streams.compression)


@jit
def _end_segment(
    k: Any, s: Any, job: Any, matrix: Any, rooms: Any, streams: Any, encoded: Any, at: Any
) -> Any:
    """Write the record of a segment whose streams are encoded; returns where the next one
    starts.
    """
    share = _share_of(rooms, s)
    for p in range(n_stored_planes(job, matrix.word_nbytes)):
        row, plane = 2 * p + s, job.planes[p]
        if plane.coder == Coder.RAW:
            symbols, size = room_of(share, p), plane_nbytes(job, matrix.word_nbytes, p)
            at = put(symbols[:size], encoded.records, at)
        elif plane.coder == Coder.RANS:
            end = end_encoding(streams, row, _words_of(rooms, row), encoded.records, at)
            encoded.n_units[p, k] = (end - at) // UNIT
            at = end
    if encoded.n_patches[k]:
        start, nbytes = PATCHES * share.size, 4 * np.int64(encoded.n_patches[k])
        at = put(share.bytes[start : start + nbytes], encoded.records, at)
    return at


@kernel
def encode_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    tables: EncodingTables,
    rooms: Rooms,
    splitting: Splitting,
    streams: Streams,
    crcs: Crcs,
    encoded: Encoded,
) -> Int:
    """As `segments.encode_range`, for segments of one common kind.

    `splitting` is one record of type `split.SPLIT`. Rooms are ``2 * SHARE`` more than a word has
    bytes.
    """
    matrix, tables, rooms = Matrix(*matrix), EncodingTables(*tables), Rooms(*rooms)
    streams, crcs, encoded = Streams(*streams), Crcs(*crcs), Encoded(*encoded)
    beside, end = rooms.bytes[2 * SHARE * rooms.size :], 0
    for a in range(first, last, 2):
        two = min(2, last - a)
        for s in range(two):
            job, share = jobs[a + s], _share_of(rooms, s)
            n_patches = _split_to_encode(job, matrix, tables, share, beside, splitting)
            encoded.n_patches[a + s] = n_patches
            sum_words(crcs, a + s, job, matrix)
            _begin_streams(s, job, matrix, tables, rooms, streams)
        for p in range(n_stored_planes(jobs[a], matrix.word_nbytes)):
            _encode_rows(2 * p, two, streams)
        for s in range(two):
            start, job = end, jobs[a + s]
            end = _end_segment(a + s, s, job, matrix, rooms, streams, encoded, start)
            sum_record(crcs, a + s, encoded.records[start:end])
    return end
