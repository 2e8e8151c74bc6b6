"""Segments of any kind: counted, encoded and decoded one by one. Spec: chapter 10.

The loops are plain code, which LLVM compiles. Every array has one type wherever it comes from, and
words are bytes, so that a kernel is compiled once. Loops run over slices, because numba guards an
index that may be negative.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from wcodec.backends.numba.arguments import (
    Counted,
    DecodingTables,
    Encoded,
    EncodingTables,
    Heads,
    Matrix,
    Rooms,
)
from wcodec.backends.numba.arrays import copy, count, fill, padded, put
from wcodec.backends.numba.checksums import Crcs, sum_record, sum_words
from wcodec.backends.numba.job_records import Jobs
from wcodec.backends.numba.kernels import Bytes, Int, Ints, Ints3, UInts32, jit, kernel
from wcodec.backends.numba.planes import (
    apply_patches,
    merge_words,
    pack_plane,
    patches_of,
    put_patches,
    replace_uncoded,
    split_words,
    unpack_plane,
)
from wcodec.backends.numba.prediction import are_modes, make_residuals, restore_tiles
from wcodec.backends.numba.rans import Streams, decode_stream, encode_stream
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.rans import UNIT
from wcodec.reference.segments import Coder, Status
from wcodec.reference.tables import MAX_PROB_BITS

# Rooms after those of the byte planes: two for packed planes, and one for residuals.
RESIDUALS: Final = 2


@jit
def room_of(rooms: Any, number: Any) -> Any:
    """One room."""
    return rooms.bytes[number * rooms.size : (number + 1) * rooms.size]


@jit
def n_stored_planes(job: Any, word_nbytes: Any) -> Any:
    """Planes of a segment (R5.9)."""
    return 2 if word_nbytes == 1 and job.layout == Layout.PAIRS else word_nbytes


@jit
def is_packed(job: Any, word_nbytes: Any, p: Any) -> Any:
    """Whether the bytes of a plane are two codes each."""
    return job.layout == Layout.PAIRS and (p == 0 or word_nbytes == 1)


@jit
def plane_nbytes(job: Any, word_nbytes: Any, p: Any) -> Any:
    """Bytes of a plane, which are its symbols (R10.3)."""
    n = job.height * job.width
    return (n + 1) // 2 if is_packed(job, word_nbytes, p) else n


@jit
def lut_of(tables: Any, t: Any) -> Any:
    """The decoding table of number `t`."""
    return tables.luts[t << MAX_PROB_BITS : (t + 1) << MAX_PROB_BITS]


# ---- histograms --------------------------------------------------------------------------------
@jit
def count_plane(
    job: Any, matrix: Any, mode: Any, plane: Any, work: Any, four: Any, natives: Any, counts: Any
) -> None:
    """Count what a mode makes of a byte plane; `work` has room for it."""
    if mode != 0:
        make_residuals(job, matrix, plane, work, mode, work[:0], natives)
        plane = work
    count(plane[: job.height * job.width], four, counts)


@kernel
def histogram_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    counted: Counted,
    rooms: Rooms,
    four: UInts32,
    natives: Ints,
    counts: Ints3,
) -> None:
    """Count the symbols of segments.

    Parameters
    ----------
    first, last
        Jobs from `first` to `last`.
    matrix, counted, rooms
        Elements of `Matrix`, `Counted`, and of `Rooms` with one more than a word has bytes.
    four
        uint32: room for four counts of 256 symbols.
    natives
        `rans.Streams.natives`.
    counts
        int64 of shape (modes * jobs, histograms of each, 256): of all jobs for each mode.
    """
    matrix, counted, rooms = Matrix(*matrix), Counted(*counted), Rooms(*rooms)
    word_nbytes, pairs = matrix.word_nbytes, counted.base >= 0
    work = rooms.bytes[word_nbytes * rooms.size :]
    for k in range(first, last):
        job, own = jobs[k], counts[k]
        half = (job.height * job.width + 1) // 2
        job.base, job.fill = max(0, counted.base), counted.fill
        split_words(job, matrix, rooms)
        if pairs and word_nbytes > 1:
            pack_plane(job, word_nbytes, 0, rooms.bytes, work)
            count(work[:half], four, own[0])
            own = own[1:]
        for i in range(counted.planes.size):
            p = counted.planes[i]
            if pairs and word_nbytes == 1:
                pack_plane(job, word_nbytes, p, rooms.bytes, work)
                count(work[:half], four, own[i])
            else:
                for m in range(counted.modes.size):
                    own, plane = counts[m * len(jobs) + k], room_of(rooms, p)
                    mode, to = counted.modes[m], own[own.shape[0] - counted.planes.size + i]
                    count_plane(job, matrix, mode, plane, work, four, natives, to)


# ---- encoding ----------------------------------------------------------------------------------
@jit
def _put_raw(job: Any, matrix: Any, record: Any, at: Any) -> Any:
    """Write the words of a segment of layout RAW; returns where the next record starts."""
    nbytes = job.width * matrix.word_nbytes
    for r in range(job.row, job.row + job.height):
        start = (r * matrix.cols + job.col) * matrix.word_nbytes
        copy(matrix.data[start : start + nbytes], record[at : at + nbytes])
        at += nbytes
    fill(record[at : padded(at)], 0)
    return padded(at)


def _segment_encoder(put_stream: Any, table_of: Any) -> Any:
    def encode_segment(
        k: Any,
        job: Any,
        matrix: Any,
        heads: Any,
        tables: Any,
        maps: Any,
        rooms: Any,
        streams: Any,
        encoded: Any,
        at: Any,
    ) -> Any:
        """Write the record of a segment at ``records[at]``; returns where the next one starts."""
        record, word_nbytes = encoded.records, matrix.word_nbytes
        if job.layout == Layout.RAW:
            return _put_raw(job, matrix, record, at)
        modes = heads.modes[job.modes_offset : job.modes_offset + job.modes_nbytes]
        scales = heads.scales[job.scales_offset : job.scales_offset + job.scales_nbytes]
        at = put(scales, record, put(modes, record, at))
        split_words(job, matrix, rooms)
        encoded.n_patches[k] = 0
        for p in range(n_stored_planes(job, word_nbytes)):
            plane, symbols = job.planes[p], room_of(rooms, p)
            size = plane_nbytes(job, word_nbytes, p)
            if is_packed(job, word_nbytes, p):
                symbols = room_of(rooms, word_nbytes + p)
                pack_plane(job, word_nbytes, p, rooms.bytes, symbols)
                t = table_of(plane, maps)
                if word_nbytes > 1 and t >= 0:
                    replace_uncoded(symbols[:size], job.fill, tables.uncoded[t])
            if plane.coder == Coder.RAW:
                at = put(symbols[:size], record, at)
            elif plane.coder != Coder.CONSTANT:
                if plane.prediction != 0:
                    residuals = room_of(rooms, word_nbytes + RESIDUALS)
                    mode = plane.prediction
                    make_residuals(job, matrix, symbols, residuals, mode, modes, streams.natives)
                    symbols = residuals
                    if mode == PER_TILE:
                        modes = modes[job.n_tiles :]
                end = put_stream(
                    job, matrix, p, symbols, scales, tables, maps, rooms, streams, record, at
                )
                encoded.n_units[p, k] = (end - at) // UNIT
                at = end
        if job.layout == Layout.PAIRS and word_nbytes > 1:
            codes, n = room_of(rooms, word_nbytes), job.height * job.width
            encoded.n_patches[k] = put_patches(rooms.bytes, codes, n, job.base, record, at)
            at += padded(4 * np.int64(encoded.n_patches[k]))
        return at

    return jit(encode_segment)


def range_encoder(put_stream: Any, table_of: Any) -> Any:
    """A function that encodes a range of segments.

    ``put_stream(job, matrix, p, symbols, scales, tables, maps, rooms, streams, record, at)`` writes
    the stream of plane `p` at ``record[at]``, and returns where the next part starts.
    ``table_of(plane, maps)`` is the table of a plane of coder RANS, or -1.
    """
    encode_segment = _segment_encoder(put_stream, table_of)

    def encode_segments(
        first: Any,
        last: Any,
        jobs: Any,
        matrix: Any,
        heads: Any,
        tables: Any,
        maps: Any,
        rooms: Any,
        streams: Any,
        crcs: Any,
        encoded: Any,
    ) -> Any:
        end = 0
        for k in range(first, last):
            job, start = jobs[k], end
            sum_words(crcs, k, job, matrix)
            end = encode_segment(
                k, job, matrix, heads, tables, maps, rooms, streams, encoded, start
            )
            sum_record(crcs, k, encoded.records[start:end])
        return end

    return jit(encode_segments)


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
    size, t = plane_nbytes(job, matrix.word_nbytes, p), job.planes[p].table
    return encode_stream(symbols, size, tables, t, rooms.stream_words, record, at, streams)


@jit
def _table_of(plane: Any, maps: Any) -> Any:
    return np.int64(plane.table) if plane.coder == Coder.RANS else np.int64(-1)


_encode_segments = range_encoder(_put_stream, _table_of)


@kernel
def encode_range(
    first: Int,
    last: Int,
    jobs: Jobs,
    matrix: Matrix,
    heads: Heads,
    tables: EncodingTables,
    rooms: Rooms,
    streams: Streams,
    crcs: Crcs,
    encoded: Encoded,
) -> Int:
    """Encode segments without contexts, one after another.

    Parameters
    ----------
    first, last
        Jobs from `first` to `last`.
    matrix, heads, tables, rooms, streams, crcs, encoded
        Elements of `Matrix`, `Heads`, `EncodingTables`, `Rooms`, `rans.Streams`, `checksums.Crcs`,
        `Encoded`. Rooms are 3 more than a word has bytes.

    Returns
    -------
    Bytes of their records.
    """
    return _encode_segments(
        first,
        last,
        jobs,
        Matrix(*matrix),
        Heads(*heads),
        EncodingTables(*tables),
        0,
        Rooms(*rooms),
        Streams(*streams),
        Crcs(*crcs),
        Encoded(*encoded),
    )


# ---- decoding ----------------------------------------------------------------------------------
@jit
def _get_raw(job: Any, matrix: Any, payload: Any) -> None:
    """Inverse of `_put_raw`."""
    at, nbytes = job.start, job.width * matrix.word_nbytes
    for r in range(job.row, job.row + job.height):
        start = (r * matrix.cols + job.col) * matrix.word_nbytes
        copy(payload[at : at + nbytes], matrix.data[start : start + nbytes])
        at += nbytes


@jit
def get_stored(
    plane: Any, p: Any, size: Any, packed: Any, payload: Any, target: Any, addresses: Any
) -> None:
    """Get a plane that is RAW or CONSTANT into `target`.

    But a raw byte plane stays where it is, and ``addresses[p]`` becomes its address.
    """
    at = plane.offset
    if plane.coder == Coder.CONSTANT:
        fill(target[:size], np.uint8(plane.table))
    elif packed:
        copy(payload[at : at + size], target[:size])
    else:
        addresses[p] = payload[at:].ctypes.data


@jit
def _decode_planes(
    job: Any, matrix: Any, payload: Any, tables: Any, rooms: Any, streams: Any
) -> Any:
    """Get planes as they are stored, codes unpacked; returns whether all streams are good.

    Streams come before anything else, for a bad one goes before any other fault.
    """
    word_nbytes = matrix.word_nbytes
    for p in range(n_stored_planes(job, word_nbytes)):
        plane, packed = job.planes[p], is_packed(job, word_nbytes, p)
        size = plane_nbytes(job, word_nbytes, p)
        target = room_of(rooms, word_nbytes if packed else p)
        rooms.addresses[p] = room_of(rooms, p).ctypes.data
        if plane.coder == Coder.RANS:
            stream, t = payload[plane.offset : plane.offset + plane.nbytes], plane.table
            if not decode_stream(
                stream, size, lut_of(tables, t), tables.prob_bits[t], target, streams
            ):
                return False
        else:
            get_stored(plane, p, size, packed, payload, target, rooms.addresses)
        if packed:
            unpack_plane(job, word_nbytes, p, target, rooms.bytes)
    return True


@jit
def modes_of(job: Any, payload: Any) -> Any:
    """Tile modes in a segment's record."""
    return payload[job.start : job.start + job.modes_nbytes]


@jit
def restore_planes(
    job: Any, matrix: Any, first: Any, last: Any, modes: Any, rooms: Any, natives: Any
) -> None:
    """Undo the modes of byte planes from `first` to `last`."""
    for p in range(last):
        mode = job.planes[p].prediction
        if mode != 0 and p >= first:
            restore_tiles(job, matrix, room_of(rooms, p), mode, modes, natives)
        if mode == PER_TILE:
            modes = modes[job.n_tiles :]


@jit
def _decode_segment(
    job: Any, matrix: Any, payload: Any, tables: Any, rooms: Any, streams: Any
) -> Any:
    """Decode a segment, and say how it went."""
    if job.layout == Layout.RAW:
        _get_raw(job, matrix, payload)
        return Status.OK
    if not _decode_planes(job, matrix, payload, tables, rooms, streams):
        return Status.BAD_STREAM
    modes = modes_of(job, payload)
    if not are_modes(modes):
        return Status.BAD_TILE_MODE
    if not apply_patches(patches_of(job, payload), job.height * job.width, rooms.bytes):
        return Status.BAD_PATCH
    restore_planes(job, matrix, 0, matrix.word_nbytes, modes, rooms, streams.natives)
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
    rooms: Rooms,
    streams: Streams,
    crcs: Crcs,
    status: Bytes,
) -> None:
    """Decode segments without contexts.

    Parameters
    ----------
    first, last
        Jobs from `first` to `last`.
    matrix, tables, rooms, streams, crcs
        Elements of `Matrix`, `DecodingTables`, `Rooms`, `rans.Streams`, `checksums.Crcs`. Rooms are
        one more than a word has bytes.
    payload
        uint8: all records.
    status
        uint8, of all segments: a `Status` each.
    """
    matrix, tables, rooms = Matrix(*matrix), DecodingTables(*tables), Rooms(*rooms)
    streams, crcs = Streams(*streams), Crcs(*crcs)
    for k in range(first, last):
        job = jobs[k]
        sum_record(crcs, k, payload[job.start : job.end])
        status[k] = _decode_segment(job, matrix, payload, tables, rooms, streams)
        sum_words(crcs, k, job, matrix)
