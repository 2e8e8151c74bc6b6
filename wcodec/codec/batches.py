"""Small tensors, planned and coded many at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.backends.protocol import Checksums, EncodedSegments
from wcodec.codec.parts import aligned, gather
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference.checksums import crc32_each
from wcodec.reference.columns import joined_columns, single_columns
from wcodec.reference.container import ByteSource
from wcodec.reference.differences import Difference
from wcodec.reference.planes import DType, Words
from wcodec.reference.records import TensorRecord
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tiles import Geometry, Spans

if TYPE_CHECKING:
    from wcodec.codec.decoder import Decoder

SMALL_NBYTES: Final = 1 << 15  #: larger tensors are coded by themselves
MOST: Final = 1024  #: tensors that are coded at once
MOST_NBYTES: Final = 1 << 22  #: words that are coded at once


class Small(NamedTuple):
    """A tensor of one row and one segment; `words` are its own."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    dtype_name: str
    row_rank: int
    geometry: Geometry
    words: bytes


def as_small(
    name: str,
    words: Words,
    dtype: DType,
    shape: tuple[int, ...],
    dtype_name: str,
    options: EncodeOptions,
) -> Small | None:
    """A tensor that can wait for others, to be coded with them; ``None`` of another one."""
    if not 0 < words.nbytes <= SMALL_NBYTES or options.contexts:
        return None
    if words.size != math.prod(shape) * dtype.words_per_element:
        return None
    row_rank, geometry = choose_geometry(shape, dtype, options)
    if geometry.rows != 1 or geometry.n_segments != 1 or not geometry.one_tile:
        return None
    return Small(name, dtype, shape, dtype_name, row_rank, geometry, words.tobytes())


def encode_batch(
    batch: list[Small], planner: Planner, backend: Backend, offset: int
) -> tuple[bytes, list[TensorRecord]]:
    """Encode small tensors, those of a dtype together.

    Returns
    -------
    Their payloads, the first of which starts at `offset` in the file, and their records.
    """
    by_dtype: dict[int, list[int]] = {}
    for i, small in enumerate(batch):
        by_dtype.setdefault(small.dtype.id, []).append(i)
    done: list[Any] = [None] * len(batch)
    for ids in by_dtype.values():
        ids.sort(key=lambda i: len(batch[i].words))  # alike ones are coded in fewer calls
        for i, one in zip(
            ids, _encode_dtype([batch[i] for i in ids], planner, backend), strict=True
        ):
            done[i] = one
    records, payloads = list[TensorRecord](), list[bytes]()
    for small, (payload, table, record_crc, words_crc) in zip(batch, done, strict=True):
        payloads.append(payload)
        records.append(
            TensorRecord(
                small.name, small.dtype, small.shape, small.row_rank, small.geometry, table,
                record_crc, offset, len(payload), words_crc, small.dtype_name,
            )
        )  # fmt: skip
        offset += len(payload)
    return b"".join(payloads), records


def _encode_dtype(batch: list[Small], planner: Planner, backend: Backend) -> list[tuple[Any, ...]]:
    """Payload, segment table, CRC-32 of the record (an array) and of the words of each tensor."""
    dtype, host = batch[0].dtype, b"".join(small.words for small in batch)
    spans = Spans.of(np.array([small.geometry.cols for small in batch], np.int64))
    words = np.frombuffer(host, dtype.word_type).reshape(1, -1)
    coder: Any = backend if backend.takes_spans else OneByOne(backend)
    coder_words = coder.to_device(words)
    plan = planner.plan(coder_words, spans, dtype, coder)
    encoded, sums = coder.encode_with_checksums(plan, coder_words)
    segments = plan.encoded(encoded.n_units, encoded.n_patches)
    payload, ends = backend.to_host(encoded.payload).tobytes(), segments.offsets.tolist()
    of_words = coder.checksums(words.reshape(-1).view(np.uint8), spans.bounds * dtype.word_nbytes)
    return [
        (payload[a:b], table, sums.records[k : k + 1], crc)
        for k, (a, b, table, crc) in enumerate(
            zip(ends, ends[1:], single_columns(segments.segments), of_words.tolist(), strict=False)
        )
    ]


# ---- decoding ------------------------------------------------------------------------------------
def is_small(t: TensorRecord) -> bool:
    """Whether a tensor is decoded with others."""
    g = t.geometry
    return (
        g.rows == 1
        and 0 < t.nbytes <= SMALL_NBYTES
        and g.cols <= min(g.segment_cols, g.tile_cols)
        and t.difference == Difference.NONE
    )


def in_batches(tensors: Iterable[TensorRecord]) -> Iterator[list[TensorRecord]]:
    """Tensors in order: small ones that follow each other, or another one."""
    batch, nbytes = list[TensorRecord](), 0
    for t in tensors:
        small = is_small(t)
        if batch and (not small or len(batch) == MOST or nbytes >= MOST_NBYTES):
            yield batch
            batch, nbytes = [], 0
        if small:
            batch.append(t)
            nbytes += t.nbytes
        else:
            yield [t]
    if batch:
        yield batch


def decode_batch(
    decoder: Decoder, source: ByteSource, batch: list[TensorRecord], tables: TablePool
) -> list[NDArray[Any]]:
    """The arrays of a batch, checked against their CRC-32s.

    Raises
    ------
    DecodeError
    """
    out: list[Any] = [None] * len(batch)
    by_dtype: dict[int, list[int]] = {}
    if decoder.backend.takes_spans and len(batch) > 1:
        for i, t in enumerate(batch):
            by_dtype.setdefault(t.dtype.id, []).append(i)
    for ids in by_dtype.values():
        ids.sort(key=lambda i: batch[i].nbytes)
        some = [batch[i] for i in ids]
        for i, t, words in zip(
            ids, some, _decode_dtype(decoder, source, some, tables), strict=False
        ):
            out[i] = words.view(t.dtype.numpy).reshape(t.shape)
    for i, t in enumerate(batch):
        if out[i] is None:  # alone, which also says what is wrong with one
            out[i] = decoder.tensor(source, t, tables)
    return out


def _decode_dtype(
    decoder: Decoder, source: ByteSource, batch: list[TensorRecord], tables: TablePool
) -> list[Words]:
    """The words of tensors of one dtype; none if they cannot be decoded together."""
    backend, dtype = decoder.backend, batch[0].dtype
    columns = joined_columns([t.segments for t in batch])
    if columns is None:
        return []
    spans = Spans.of(np.array([t.geometry.cols for t in batch], np.int64))
    plan = SegmentPlan(dtype, spans, columns, tables)
    starts = np.array([t.payload_offset for t in batch], np.int64)
    payload = aligned(gather(source, starts, plan.offsets))
    words = np.empty((1, spans.cols), dtype.word_type)
    status, sums = backend.decode_with_checksums(plan, payload, words)
    flat, ends = words.reshape(-1), spans.bounds
    crcs = backend.checksums(flat.view(np.uint8), ends * dtype.word_nbytes)
    if (
        status.any()
        or sums.records.tolist() != [int(t.segment_crc32[0]) for t in batch]
        or crcs.tolist() != [t.crc32 for t in batch]
    ):
        return []
    bounds = ends.tolist()
    return [flat[a:b].copy() for a, b in pairwise(bounds)]


# ---- other backends ------------------------------------------------------------------------------
class OneByOne:
    """A backend that takes no `Spans`, with kernels that take them: a call for each segment."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def to_device(self, words: Words) -> Words:
        """They stay on the host until their turn."""
        return words

    def to_host(self, words: Words, out: Words | None = None) -> Words:
        """See `Backend.to_host`."""
        return words

    def _each(self, words: Words, geometry: Geometry) -> list[tuple[Any, Geometry]]:
        parts = [words[geometry.rectangle(k)] for k in range(geometry.n_segments)]
        return [
            (
                self.backend.to_device(np.ascontiguousarray(p)),
                Geometry(1, p.size, 1, p.size, 1, p.size),
            )
            for p in parts
        ]

    def histogram(
        self, words: Words, geometry: Geometry, dtype: DType, *,
        segments: NDArray[np.int64] | None = None, **what: Any,
    ) -> NDArray[np.int64]:  # fmt: skip
        """See `Backend.histogram`."""
        each = self._each(words, geometry)
        ids = range(len(each)) if segments is None else segments.tolist()
        counts = [self.backend.histogram(*each[k], dtype, **what) for k in ids]
        return np.concatenate(counts)

    def encode_with_checksums(
        self, plan: SegmentPlan, words: Words
    ) -> tuple[EncodedSegments, Checksums]:
        """See `Backend.encode_with_checksums`; without the checksum of all words."""
        done = list[tuple[EncodedSegments, Checksums]]()
        for k, (part, geometry) in enumerate(self._each(words, plan.geometry)):
            one = SegmentPlan(
                plan.dtype, geometry, plan.segments.take(np.array([k])), plan.tables,
                None if plan.fill is None else plan.fill[k : k + 1],
            )  # fmt: skip
            encoded, sums = self.backend.encode_with_checksums(one, part)
            payload = self.backend.to_host(encoded.payload).copy()
            done.append((encoded._replace(payload=payload), sums))
        return EncodedSegments(
            np.concatenate([e.payload for e, _ in done]),
            np.concatenate([e.n_units for e, _ in done], axis=1),
            np.concatenate([e.n_patches for e, _ in done]),
        ), Checksums(np.concatenate([s.records for _, s in done]), 0)

    def checksums(
        self, payload: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """See `Backend.checksums`."""
        return crc32_each(payload, offsets)
