"""Sparse tensors, decoded. Spec: 12.1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.buffers import Buffers
from wcodec.codec.checks import check_segments
from wcodec.codec.one_by_one import coder_of
from wcodec.codec.parts import Ids, runs_of_records
from wcodec.errors import DecodeError
from wcodec.reference.container import ByteSource
from wcodec.reference.records import joined_plan
from wcodec.reference.segments import SegmentPlan, SegmentTable
from wcodec.reference.sparse import ListedSegments, Put, PutStatus
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import Spans


class SomeLists(NamedTuple):
    """Lists of some segments of a sparse tensor.

    Attributes
    ----------
    ids
        Numbers of the segments, of those that have listed words.
    numbers
        The same among all such segments of the tensor.
    segments
        What a backend wants to know of them.
    """

    t: TensorRecord
    ids: Ids
    numbers: Ids
    segments: ListedSegments

    @classmethod
    def of(cls, t: TensorRecord, across: Ids, array: int = 0) -> SomeLists:
        """Those of the segments `across`, ascending, whose words are an array, the one of that
        number, one after another.
        """
        assert t.lists is not None
        has_some, sizes = t.lists.n_listed[across] > 0, t.geometry.n_elements()[across]
        starts, ids = (np.cumsum(sizes) - sizes)[has_some], across[has_some]
        numbers = np.searchsorted(t.lists.touched, ids)
        n_gaps, n_listed = (part.geometry.n_elements()[numbers] for part in t.lists.parts)
        arrays, crcs = np.full(ids.size, array, np.int64), t.lists.words_crc32[numbers]
        of = ListedSegments(arrays, n_gaps, n_listed, starts, sizes[has_some], crcs)
        return cls(t, ids, numbers, of)

    def check_places(self, right: NDArray[np.bool_]) -> None:
        """See that the gaps of all segments keep the rule.

        Raises
        ------
        DecodeError
            ``bad_patch``
        """
        if not right.all():
            k = int(self.ids[np.argmin(right)])
            raise DecodeError(
                "bad_patch", f"segment {k}: its gaps do not fit it", tensor=self.t.name
            )

    def check_words(self, right: NDArray[np.bool_]) -> None:
        """See that the CRC-32s of the listed words of all segments are right.

        Raises
        ------
        DecodeError
            ``bad_checksum``
        """
        if not right.all():
            k = int(self.ids[np.argmin(right)])
            raise DecodeError(
                "bad_checksum",
                f"the CRC-32 of the listed words of segment {k} does not match",
                tensor=self.t.name,
            )


def put_lists(
    buffers: Buffers,
    source: ByteSource,
    some: list[SomeLists],
    arrays: list[Any],
    tables: TablePool,
) -> tuple[Put, ListedSegments]:
    """Decode lists, and put the listed words into arrays of the device that hold the words of the
    base: into each array all of them, or if something is wrong there, none.

    Parameters
    ----------
    some
        For each array, lists of a tensor; all tensors have one coded dtype and difference.

    Raises
    ------
    DecodeError
        As `Decoder.grid`; nothing has been changed.
    """
    columns = zip(*(lists.segments for lists in some), strict=True)
    segments = ListedSegments._make(np.concatenate(column) for column in columns)
    parts = [[(part, of.numbers) for part in of.t.lists.parts] for of in some if of.t.lists]
    gaps, listed = (_decoded(buffers, source, [p[i] for p in parts], tables) for i in (0, 1))
    put = buffers.backend.put_lists(arrays, gaps, listed, segments, some[0].t.difference)
    return put, segments


def check_gaps(some: list[SomeLists], put: Put, segments: ListedSegments) -> None:
    """See that the gaps of all lists that `put_lists` was given keep the rule.

    Raises
    ------
    DecodeError
        ``bad_patch``
    """
    right = put.status != PutStatus.BAD_GAPS.value
    for i, lists in enumerate(some if not right.all() else ()):
        lists.check_places(right[segments.of == i])


def _decoded(
    buffers: Buffers, source: ByteSource, parts: list[tuple[TensorRecord, Ids]], tables: TablePool
) -> Any:
    """Segments of lists of one dtype, decoded one after another into new memory of the device."""
    first, backend = parts[0][0], buffers.backend
    if all(numbers.size == t.segment_crc32.size for t, numbers in parts):
        plan = joined_plan([t for t, _ in parts], tables)
        ends = np.cumsum([0, *(numbers.size for _, numbers in parts)])
        shift = np.array([t.payload_offset for t, _ in parts]) - plan.offsets[ends[:-1]]
        starts = plan.offsets[:-1] + np.repeat(shift, np.diff(ends))
    else:
        whole = [t.plan(tables) for t, _ in parts]
        widths = np.concatenate([t.geometry.n_elements()[n] for t, n in parts])
        columns = SegmentTable.concatenate([t.segments.take(n) for t, n in parts])
        plan = SegmentPlan(first.dtype, Spans.of(widths), columns, tables)
        starts = np.concatenate(
            [p.offsets[:-1][n] + t.payload_offset for p, (t, n) in zip(whole, parts, strict=True)]
        )
    device = buffers.room((1, plan.geometry.cols), first)
    where = runs_of_records(starts, plan.offsets)
    with buffers.records(source, where, first.name) as records:
        payload, coder = backend.to_device(records), coder_of(backend, plan.geometry)
        status, sums = coder.decode_with_checksums(plan, payload, device)
    at = 0
    for t, numbers in parts:
        of = slice(at, at + numbers.size)
        check_segments(t, numbers, starts[of], status[of], sums.records[of])
        at += numbers.size
    return device.reshape(-1)


def add_lists(
    buffers: Buffers,
    source: ByteSource,
    t: TensorRecord,
    tables: TablePool,
    across: Ids,
    words: Any,
) -> None:
    """Put listed words of the segments `across` of a sparse tensor into memory of the device that
    holds the base's.

    Raises
    ------
    DecodeError
        As `put_lists`; ``bad_patch``: gaps do not fit their segment; ``bad_checksum``: listed words
        are wrong.
    """
    if t.lists is None or not t.lists.n_listed[across].any():
        return
    lists = SomeLists.of(t, across)
    put, segments = put_lists(buffers, source, [lists], [words], tables)
    check_gaps([lists], put, segments)
    lists.check_words(put.status == PutStatus.PUT.value)
