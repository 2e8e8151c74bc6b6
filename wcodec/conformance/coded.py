"""What kernels code of a case: the words of its tensors, or the lists of those that are sparse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.protocol import Backend
from wcodec.codec.parts import aligned
from wcodec.conformance.cases import Case, require
from wcodec.reference.differences import subtract
from wcodec.reference.planes import Bytes, Words
from wcodec.reference.segments import SegmentPlan
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Geometry, Spans


@dataclass(frozen=True)
class Coded:
    """Segments that are coded at once, as a backend takes them.

    Attributes
    ----------
    record
        Of the tensor; of a list of a sparse one, or of a segment of that.
    plan, payload
        How the segments are coded, and their records.
    number, segments, cols
        Which of `matrices` they are of; their numbers, and their columns, there.
    """

    record: TensorRecord
    plan: SegmentPlan
    payload: Bytes
    number: int
    segments: slice
    cols: slice


def coded_of(data: bytes, t: TensorRecord, tables: TablePool, backend: Backend) -> Iterator[Coded]:
    """What is coded of a tensor of a file. Backends that take no `Spans` get lists segment by
    segment.
    """
    for i, part in enumerate(parts_of(t)):
        if isinstance(part.geometry, Spans) and not backend.takes_spans:
            for k in range(part.geometry.n_segments):
                one, (_, cols) = _segment(part, k, tables), part.geometry.rectangle(k)
                yield Coded(one, one.plan(tables), payload_of(one, data), i, slice(k, k + 1), cols)
        else:
            plan = part.plan(tables)
            yield Coded(part, plan, payload_of(part, data), i, slice(None), slice(None))


def parts_of(t: TensorRecord) -> tuple[TensorRecord, ...]:
    """The records whose plans say how a tensor is coded: its own; or, of a sparse one, those of its
    lists, and none if it lists nothing.
    """
    if t.lists is None:
        return (t,)
    return t.lists.parts if t.lists.touched.size else ()


def _segment(t: TensorRecord, k: int, tables: TablePool) -> TensorRecord:
    """Segment `k` of a list as a tensor."""
    width, offsets = int(t.geometry.n_elements()[k]), t.plan(tables).offsets
    return replace(
        t,
        shape=(width,),
        geometry=Geometry(1, width, 1, width, 1, width),
        segments=t.segments.take(np.array([k])),
        segment_crc32=t.segment_crc32[k : k + 1],
        payload_offset=t.payload_offset + int(offsets[k]),
        payload_nbytes=int(offsets[k + 1] - offsets[k]),
    )


def payload_of(t: TensorRecord, data: bytes) -> Bytes:
    """The records of a tensor, or of a list, where a backend may read them."""
    stop = t.payload_offset + t.payload_nbytes
    return aligned(np.frombuffer(data[t.payload_offset : stop], np.uint8))


def matrices(case: Case, i: int, t: TensorRecord) -> list[Words]:
    """What is coded of tensor `i`: the words, or their difference from the base's; of a sparse one
    the gaps, and the difference of the listed words.
    """
    if t.lists is None:
        words = case.coded_words(i, t.difference)
        return [words.reshape(t.geometry.rows, t.geometry.cols)]
    due = case.changes(i, t.geometry.segment_cols)
    for name, got, of in (
        ("n_listed", t.lists.n_listed, due.n_listed),
        ("n_gaps", t.lists.gaps.geometry.n_elements(), due.n_gaps[due.n_gaps > 0]),
    ):
        require(got.tolist() == of.tolist(), f"{name} {of.tolist()[:20]}", str(got.tolist()[:20]))
    return [due.gaps[None], subtract(due.words, due.base, t.difference)[None]]


def fills(case: Case, i: int, t: TensorRecord) -> list[NDArray[np.uint8] | None]:
    """The fill codes of the segments of what `matrices` gives, where they are known."""
    of = case.row["tensors"][i].get("fill")
    if of is None:
        return [None, None]
    return [np.array(f, np.uint8) for f in (of if t.lists is not None else [of])]
