"""Small tensors, planned and coded many at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.checks import check_encoded
from wcodec.codec.one_by_one import coder_of
from wcodec.codec.parts import aligned, gather, runs_of_records
from wcodec.codec.working import MOST_NBYTES
from wcodec.planner.geometry import choose_geometry
from wcodec.planner.options import EncodeOptions
from wcodec.planner.planner import Planner
from wcodec.reference.checksums import crc32_each
from wcodec.reference.columns import joined_columns, single_columns
from wcodec.reference.container import ByteSource
from wcodec.reference.differences import Difference
from wcodec.reference.planes import DType, Words
from wcodec.reference.records import by_dtype
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry, Spans

if TYPE_CHECKING:
    from wcodec.codec.decoder import Decoder

SMALL_NBYTES: Final = 1 << 15  #: larger tensors are coded by themselves
MOST: Final = 2048  #: tensors that are coded at once
MOST_PLANES: Final = 1 << 12  #: whose histograms are held at once, for each mode


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
    geometries: dict[Any, tuple[int, Geometry]],
) -> Small | None:
    """A tensor that can wait for others, to be coded with them; ``None`` of another one.
    `geometries` are those that were chosen with these options, by shape and dtype.
    """
    if not 0 < words.nbytes <= SMALL_NBYTES or options.contexts:
        return None
    if options.force or options.layout == "pairs":  # each as asked, in a window of its own
        return None
    if words.size != math.prod(shape) * dtype.words_per_element:
        return None
    key = shape, dtype.id
    if key not in geometries:
        geometries[key] = choose_geometry(shape, dtype, options)
    row_rank, geometry = geometries[key]
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
    done: list[Any] = [None] * len(batch)
    for all_ids in by_dtype(small.dtype for small in batch):
        all_ids.sort(key=lambda i: len(batch[i].words))  # alike ones are coded in fewer calls
        step = MOST_PLANES // batch[all_ids[0]].dtype.n_planes
        for start in range(0, len(all_ids), step):
            ids = all_ids[start : start + step]
            coded = _encode_dtype([batch[i] for i in ids], planner, backend)
            for i, one in zip(ids, coded, strict=True):
                done[i] = one
    records, payloads = list[TensorRecord](), list[memoryview]()
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
    coder = coder_of(backend, spans)
    coder_words = coder.to_device(words)
    plan = planner.plan(coder_words, spans, dtype, coder)
    encoded, sums = coder.encode_with_checksums(plan, coder_words)
    segments = plan.encoded(encoded.n_units, encoded.n_patches)
    payload, ends = coder.to_host(encoded.payload).data, segments.offsets.tolist()
    check_encoded(backend, segments, len(payload))
    of_words = crc32_each(np.frombuffer(host, np.uint8), spans.bounds * dtype.word_nbytes)
    return [
        (payload[a:b], table, sums.records[k : k + 1], crc)
        for k, (a, b, table, crc) in enumerate(
            zip(ends, ends[1:], single_columns(segments.segments), of_words.tolist(), strict=False)
        )
    ]


# ---- decoding ------------------------------------------------------------------------------------
def is_small(t: TensorRecord) -> bool:
    """Whether a tensor is decoded with others."""
    return t.is_single and t.nbytes <= SMALL_NBYTES and t.difference == Difference.NONE


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
    together = batch if decoder.backend.takes_spans and len(batch) > 1 else []
    for ids in by_dtype(t.dtype for t in together):
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
    payload = backend.to_device(aligned(gather(source, runs_of_records(starts, plan.offsets))))
    words = np.empty((1, spans.cols), dtype.word_type)
    device = backend.target(words)
    status, sums = backend.decode_with_checksums(plan, payload, device)
    if device is not words:
        backend.to_host(device, words)
    flat, ends = words.reshape(-1), spans.bounds
    crcs = crc32_each(flat.view(np.uint8), ends * dtype.word_nbytes)
    if (
        status.any()
        or sums.records.tolist() != [int(t.segment_crc32[0]) for t in batch]
        or crcs.tolist() != [t.crc32 for t in batch]
    ):
        return []
    bounds = ends.tolist()
    return [flat[a:b].copy() for a, b in pairwise(bounds)]
