"""Sparse tensors, written: what has changed is listed, and the lists of many tensors are coded at
once. Spec: 12.1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.checks import check_encoded
from wcodec.codec.one_by_one import coder_of
from wcodec.planner.differences import MOST, kind_of_lists
from wcodec.planner.planner import Planner
from wcodec.reference.checksums import crc32_combine
from wcodec.reference.differences import BaseTensor, Difference, coded_dtype
from wcodec.reference.planes import Bytes, DType, Words
from wcodec.reference.records import by_dtype
from wcodec.reference.segments import SegmentTable
from wcodec.reference.tensors import GAP_DTYPE, Lists, TensorRecord
from wcodec.reference.tiles import Geometry, Spans

LIST_NBYTES: Final = 1 << 23  #: words that are compared at once


class Tensor(NamedTuple):
    """What a file says of a tensor that is about to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    dtype_name: str


class Listed(NamedTuple):
    """What has changed of a tensor, on the host.

    Attributes
    ----------
    geometry
        One row.
    n_listed
        uint32: of each segment.
    n_gaps
        uint32: of each segment with listed words.
    gaps, words, base
        Those of all segments, one after another; words and those of the base in their places.
    crc32, base_crc32
        Of all words.
    """

    tensor: Tensor
    geometry: Geometry
    n_listed: NDArray[np.uint32]
    n_gaps: NDArray[np.uint32]
    gaps: Bytes
    words: Words
    base: Words
    crc32: int
    base_crc32: int

    @property
    def n_words(self) -> int:
        """Words of the tensor."""
        return self.geometry.cols


def list_words(
    tensor: Tensor, words: Any, base: BaseTensor, geometry: Geometry, backend: Backend
) -> Listed | None:
    """What has changed of a tensor, or ``None`` if that is too much to be listed.

    Parameters
    ----------
    words
        Flat: an array, or words of a file.
    base
        As a matrix of this geometry, which has one row.
    """
    n, nbytes, size = geometry.cols, words.dtype.itemsize, geometry.segment_cols
    step, left, crcs = max(1, LIST_NBYTES // (size * nbytes)) * size, n // MOST, [0, 0]
    room, parts = np.empty((1, min(n, step)), words.dtype), list[tuple[Any, ...]]()
    for start in range(0, n, step):
        cols = slice(start, min(start + step, n))
        chunk = np.require(words[cols], words.dtype, ["C", "A"])
        other = base.words(slice(0, 1), cols, room[:, : chunk.size]).reshape(-1)
        on_device = backend.to_device(chunk), backend.to_device(other)
        found = backend.list_changes(*on_device, size, left)
        if found is None:
            return None
        left -= int(found.n_listed.sum())
        for i, some in enumerate((chunk, other)):
            crcs[i] = crc32_combine(crcs[i], backend.crc32(some), some.nbytes)
        lists = (backend.to_host(part) for part in found[2:])
        parts.append((found.n_listed, found.n_gaps[found.n_gaps > 0], *lists))
    columns: Any = (np.concatenate(some) for some in zip(*parts, strict=True))
    return Listed(tensor, geometry, *columns, *crcs)


# ---- coding --------------------------------------------------------------------------------------
class Part(NamedTuple):
    """Gaps or words of a tensor, coded: records, their CRC-32s, columns of the segment table."""

    data: memoryview
    crc32s: NDArray[np.uint32]
    segments: SegmentTable


def encode_listed(
    batch: list[Listed], planner: Planner, backend: Backend, write: Callable[[Any], int]
) -> list[TensorRecord]:
    """Encode and write the lists of some tensors: of each the records of its gaps, then those of
    its words.

    Parameters
    ----------
    write
        Writes bytes at the end of the file; gives the place where they start.
    """
    some = [one for one in batch if one.gaps.size]
    gaps = iter(_encode([(one.gaps, one.n_gaps) for one in some], GAP_DTYPE, planner, backend))
    kinds = [kind_of_lists(one.words, one.base) for one in batch]
    words = dict[int, tuple[Part, NDArray[np.uint32]]]()
    for kind in Difference:
        of = [i for i, one in enumerate(batch) if kinds[i] == kind and one.gaps.size]
        for ids in by_dtype(batch[i].tensor.dtype for i in of):
            same = [of[i] for i in ids]
            done = _words([batch[i] for i in same], kind, planner, backend)
            words.update(zip(same, done, strict=True))
    records = list[TensorRecord]()
    for i, (one, kind) in enumerate(zip(batch, kinds, strict=True)):
        name, dtype, shape, dtype_name = one.tensor
        coded = coded_dtype(dtype, kind)
        lists, parts = Lists.none(name, coded, one.n_listed), list[Part]()
        if i in words:
            parts = [next(gaps), words[i][0]]
            lists = Lists.of(
                name, coded, one.n_listed, one.n_gaps, words[i][1],
                (parts[0].segments, parts[1].segments), (parts[0].crc32s, parts[1].crc32s),
            )  # fmt: skip
        starts = [write(part.data) for part in parts] or [write(b"")]
        lists.place(starts[0], (len(parts[0].data), len(parts[1].data)) if parts else (0, 0))
        none = SegmentTable.zeros(0, coded.n_planes), np.empty(0, np.uint32)
        nbytes = lists.gaps.payload_nbytes + lists.words.payload_nbytes
        record = TensorRecord(
            name, dtype, shape, 0, one.geometry, *none, starts[0], nbytes, one.crc32, dtype_name,
            kind, lists=lists,
        )  # fmt: skip
        records.append(record)
    return records


def _words(
    batch: list[Listed], kind: Difference, planner: Planner, backend: Backend
) -> list[tuple[Part, NDArray[np.uint32]]]:
    """The listed words of tensors of one dtype, coded, and the CRC-32s of the words themselves."""
    dtype, n = batch[0].tensor.dtype, [one.n_listed[one.n_listed > 0] for one in batch]
    words = np.concatenate([one.words for one in batch])
    base = np.concatenate([one.base for one in batch])
    on_device, bounds = (
        backend.to_device(words),
        Spans.of(np.concatenate(n).astype(np.int64)).bounds,
    )
    crcs = backend.checksums(on_device.view(np.uint8), bounds * dtype.word_nbytes)
    coded = backend.to_host(backend.subtract_base(on_device, backend.to_device(base), kind))
    word_ends = np.cumsum([0, *(int(k.sum()) for k in n)]).tolist()
    lists = [(coded[a:b], k) for (a, b), k in zip(pairwise(word_ends), n, strict=True)]
    parts = _encode(lists, coded_dtype(dtype, kind), planner, backend)
    segment_ends = np.cumsum([0, *(k.size for k in n)]).tolist()
    return [(part, crcs[a:b]) for part, (a, b) in zip(parts, pairwise(segment_ends), strict=True)]


def _encode(
    lists: list[tuple[Words, NDArray[np.uint32]]], dtype: DType, planner: Planner, backend: Backend
) -> list[Part]:
    """Encode the lists of each tensor, given the words of each segment."""
    if not lists:
        return []
    spans = Spans.of(np.concatenate([n for _, n in lists]).astype(np.int64))
    coder = coder_of(backend, spans)
    words = coder.to_device(np.concatenate([words for words, _ in lists]).reshape(1, -1))
    plan = planner.plan_lists(words, spans, dtype, coder)
    encoded, sums = coder.encode_with_checksums(plan, words)
    done, payload = plan.encoded(encoded.n_units, encoded.n_patches), coder.to_host(encoded.payload)
    check_encoded(backend, done, payload.nbytes)
    offsets, out, first = done.offsets.tolist(), list[Part](), 0
    for _, n in lists:
        last = first + n.size
        columns = done.segments.take(np.arange(first, last))
        out.append(
            Part(payload[offsets[first] : offsets[last]].data, sums.records[first:last], columns)
        )
        first = last
    return out
