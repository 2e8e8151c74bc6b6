"""``.wcodec`` files taken apart and put together again, with checksums that are right.

What is mutated has to stay a file that a decoder reads to its end: a checksum that does not match
hides whatever comes after it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.sources import BufferSource
from wcodec.conformance.coded import payload_of
from wcodec.errors import DecodeError
from wcodec.reference.container import (
    FOOTER,
    HEADER,
    MAX_INDEX_RATIO,
    RECORD,
    RecordType,
    read_index,
    seal_index,
    write_header,
)
from wcodec.reference.differences import BaseCheckpoint
from wcodec.reference.planes import BY_ID, Words
from wcodec.reference.records import TENSOR
from wcodec.reference.segments import Status
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import Lists, TensorRecord

MAX_TENSOR_NBYTES: Final = 1 << 18  #: decoded; larger tensors would take the time of many
_CRC_OFFSET: Final = 16  #: of a tensor's CRC-32 in its record


class Parts(NamedTuple):
    """A file without what follows from the rest of it."""

    payload: bytes
    records: bytes  # of the index, inflated


def take_apart(data: bytes) -> Parts | None:
    """The parts of a file, whatever its checksums say; none of what is no file at all."""
    if len(data) < HEADER.size + FOOTER.size:
        return None
    at, _, nbytes, *_, coding = FOOTER.unpack(data[-FOOTER.size :])[:7]
    stored = data[at : -FOOTER.size]
    if not HEADER.size <= at <= len(data) - FOOTER.size:
        return None
    if coding:
        inflater = zlib.decompressobj()
        try:
            stored = inflater.decompress(stored, min(nbytes, MAX_INDEX_RATIO * len(stored)) + 1)
        except zlib.error:
            return None
    return Parts(data[HEADER.size : at], stored)


class Place(NamedTuple):
    """Where the body of a record is."""

    kind: int
    start: int
    stop: int


def places(records: bytes) -> Iterator[Place]:
    """The records of an index, as far as they go."""
    at = 0
    while at + RECORD.size <= len(records):
        kind, _, nbytes = RECORD.unpack_from(records, at)
        start = at + RECORD.size
        at = start + nbytes
        yield Place(kind, start, min(at, len(records)))


def tensor_sizes(records: bytes) -> list[int]:
    """Bytes of each decoded tensor, as far as they can be told."""
    sizes: list[int] = []
    for place in places(records):
        body = records[place.start : place.stop]
        if place.kind == RecordType.TENSOR and len(body) >= TENSOR.size:
            dtype_id, rank = TENSOR.unpack_from(body)[3:5]
            rank = min(rank, (len(body) - TENSOR.size) // 8)
            shape = struct.unpack_from(f"<{rank}Q", body, TENSOR.size)
            dtype = BY_ID.get(dtype_id)
            sizes.append(math.prod(shape) * dtype.nbytes if dtype else 0)
        elif place.kind == RecordType.DUPLICATE and len(body) >= 4:
            of = int.from_bytes(body[:4], "little")
            sizes.append(sizes[of] if of < len(sizes) else 0)
    return sizes


def put_together(parts: Parts) -> bytes:
    """A file whose header, footer and index fit each other."""
    sizes = tensor_sizes(parts.records)
    head = write_header() + parts.payload
    return head + seal_index(parts.records, len(head), sum(sizes) % (1 << 64), len(sizes))


def mended(data: bytes, backend: Backend, base: BaseCheckpoint | None = None) -> bytes:
    """The file with the checksums of its segments and tensors mended too, as far as it can be read
    and `backend` decodes it; those of differences are mended if their base is given.
    """
    parts = take_apart(data)
    if parts is None:
        return data
    data = put_together(parts)
    try:
        index = read_index(BufferSource(data), backend.read_tables, backend.check_plan)
    except DecodeError:
        return data
    records = bytearray(parts.records)
    bodies = (p.start for p in places(parts.records) if p.kind == RecordType.TENSOR)
    for start, t in zip(bodies, (t for t in index.tensors if t.duplicate_of is None), strict=True):
        if 0 < t.nbytes <= MAX_TENSOR_NBYTES:
            mend = _mend_tensor if t.lists is None else _mend_sparse
            mend(records, start, t, data, backend, index.tables, base)
    return put_together(Parts(parts.payload, bytes(records)))


def _mend_tensor(
    records: bytearray,
    start: int,
    t: TensorRecord,
    data: bytes,
    backend: Backend,
    tables: TablePool,
    base: BaseCheckpoint | None,
) -> None:
    plan, payload = t.plan(tables), payload_of(t, data)
    words = np.empty((t.geometry.rows, t.geometry.cols), plan.dtype.word_type)
    status, sums = backend.decode_with_checksums(plan, payload, words)
    if (status == Status.OK).all():
        crc = sums.words
        if t.difference and base is not None:
            there = base.base_tensor(t.name, t.dtype, t.shape, t.geometry)
            if there is not None:
                whole, room = (slice(0, side) for side in words.shape), np.empty_like(words)
                crc = backend.add_base(words, there.words(*whole, room), t.difference)
        struct.pack_into("<I", records, start + _CRC_OFFSET, crc)
    _put_crcs(records, _table_of(start, t), sums.records)


def _table_of(start: int, t: TensorRecord) -> int:
    """Where the segment table of a record is."""
    names = len(t.name.encode()) + len(t.dtype_name.encode())
    return start + TENSOR.size + 8 * len(t.shape) + names


def _put_crcs(records: bytearray, at: int, crcs: NDArray[np.uint32]) -> int:
    """Returns where what follows them is."""
    data = crcs.astype("<u4").tobytes()
    records[at : at + len(data)] = data
    return at + len(data)


def _mend_sparse(
    records: bytearray,
    start: int,
    t: TensorRecord,
    data: bytes,
    backend: Backend,
    tables: TablePool,
    base: BaseCheckpoint | None,
) -> None:
    """As `_mend_tensor`, of a sparse tensor; `backend` takes `Spans`."""
    lists = t.lists
    assert lists is not None
    there = None if base is None else base.base_tensor(t.name, t.dtype, t.shape, t.geometry)
    whole = np.empty((t.geometry.rows, t.geometry.cols), t.dtype.word_type)
    if there is not None:
        np.copyto(whole, there.words(slice(0, 1), slice(0, whole.size), np.empty_like(whole)))
    k, at, decoded = lists.touched.size, _table_of(start, t), list[Any]()
    if k:
        for part in lists.parts:
            words = np.empty((1, part.geometry.cols), part.dtype.word_type)
            status, sums = backend.decode_with_checksums(
                part.plan(tables), payload_of(part, data), words
            )
            decoded.append((not status.any(), sums.records, words.reshape(-1)))
        words_crcs = lists.words_crc32
        if there is not None and all(good for good, _, _ in decoded):
            found = _put_words(t, lists, decoded[0][2], decoded[1][2], whole, backend)
            words_crcs = words_crcs if found is None else found
        at = _after_column(records, at + 4 * lists.n_listed.size, k)
        at = _put_crcs(records, at, words_crcs)
        for part, (_, crcs, _) in zip(lists.parts, decoded, strict=True):
            at = _put_crcs(records, at, crcs)
            for _ in range(3 + 4 * part.dtype.n_planes):
                at = _after_column(records, at, k)
    if there is not None:
        struct.pack_into("<I", records, start + _CRC_OFFSET, backend.crc32(whole))


def _put_words(
    t: TensorRecord, lists: Lists, gaps: Words, words: Words, whole: Words, backend: Backend
) -> NDArray[np.uint32] | None:
    """Puts listed words into those of the base. Returns `words_crc32`; none if gaps are wrong."""
    sizes = [part.geometry.n_elements() for part in lists.parts]
    starts, of = t.geometry.corners()[1][lists.touched], t.geometry.n_elements()[lists.touched]
    places, right = backend.places_of(gaps, *sizes, starts, of)
    if not right.all():
        return None
    backend.add_base(words, backend.take(whole, places), t.difference)
    backend.put(whole, places, words)
    bounds = np.append(0, np.cumsum(sizes[1])) * words.itemsize
    return backend.checksums(words.view(np.uint8), bounds)


def _after_column(records: bytearray, at: int, n: int) -> int:
    """Where a column of `n` values (R4.37) ends."""
    return at + 1 + (records[at] * n or 4)
