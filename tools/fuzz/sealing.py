"""``.wcodec`` files taken apart and put together again, with checksums that are right.

What is mutated has to stay a file that a decoder reads to its end: a checksum that does not match
hides whatever comes after it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.parts import aligned
from wcodec.codec.sources import BufferSource
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
from wcodec.reference.planes import BY_ID
from wcodec.reference.records import TENSOR, TensorRecord
from wcodec.reference.segments import Status
from wcodec.reference.tables import TablePool

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
            _mend_tensor(records, start, t, data, backend, index.tables, base)
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
    at = start + TENSOR.size + 8 * len(t.shape) + len(t.name.encode()) + len(t.dtype_name.encode())
    crcs = sums.records.astype("<u4").tobytes()
    records[at : at + len(crcs)] = crcs


def payload_of(t: TensorRecord, data: bytes) -> NDArray[np.uint8]:
    """A tensor's payload, where a backend may read it."""
    stop = t.payload_offset + t.payload_nbytes
    return aligned(np.frombuffer(data[t.payload_offset : stop], np.uint8))
