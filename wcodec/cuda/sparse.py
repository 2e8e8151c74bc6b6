"""Sparse tensors, on the device. Spec: 12.1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda import sparse
from wcodec.backends.cuda.checksums import crc32_records
from wcodec.backends.cuda.decoding import Decoding
from wcodec.backends.cuda.decoding import portions as cut
from wcodec.backends.cuda.differences import add_base
from wcodec.backends.cuda.runtime import Runtime
from wcodec.backends.cuda.worklist import WorkItem
from wcodec.codec.checks import check_segments
from wcodec.codec.parts import Part, part_of
from wcodec.codec.sparse import SomeLists
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord

#: device memory for what the kernels are told of a segment, and to pad what they write
OF_SEGMENT_NBYTES: Final = 1 << 12


class Portion(NamedTuple):
    """Segments of a sparse tensor whose listed words are decoded at once.

    Attributes
    ----------
    lists
        Their lists.
    gaps, words
        How these are coded, and where in the file.
    word_offset
        Where the first of the segments starts in the tensor's memory, in bytes.
    """

    lists: SomeLists
    gaps: Part
    words: Part
    word_offset: int

    @property
    def records(self) -> list[tuple[int, int]]:
        """Where the records start in the file, and their bytes: of the gaps, and of the words."""
        parts = self.gaps, self.words
        return [(int(part.starts[0]), int(part.plan.offsets[-1])) for part in parts]


def segments_nbytes(t: TensorRecord, tables: TablePool) -> NDArray[np.int64]:
    """Device memory that it takes to decode the lists of each segment that has some: records, gaps,
    words and those of the base, and their places; symbols on their way come on top.
    """
    assert t.lists is not None
    n_gaps, n_words = (part.geometry.n_elements() for part in t.lists.parts)
    of_records = sum(np.diff(part.plan(tables).offsets) for part in t.lists.parts)
    of_word = 2 * t.dtype.word_nbytes + sparse.PLACE_NBYTES
    return np.asarray(of_records + n_gaps + n_words * of_word + OF_SEGMENT_NBYTES, np.int64)


def portions(t: TensorRecord, tables: TablePool, limit: int) -> Iterator[Portion]:
    """Cut the lists of a tensor into portions that take at most `limit` bytes (`segments_nbytes`),
    or are of one segment.
    """
    assert t.lists is not None
    touched, row = t.lists.touched, np.zeros(1, np.int64)
    for a, b in cut(segments_nbytes(t, tables), limit):
        first, last = int(touched[a]), int(touched[b - 1])
        lists = SomeLists.of(t, np.arange(first, last + 1))
        gaps, words = (
            part_of(part, part.plan(tables), row, lists.numbers) for part in t.lists.parts
        )
        yield Portion(lists, gaps, words, first * t.geometry.segment_cols * t.dtype.word_nbytes)


class PendingLists:
    """The words of a portion, which a stream has been told to decode and to put into their places.

    Parameters
    ----------
    payloads
        Device addresses of the records of gaps and of words, multiples of 16.
    words
        Device address of the tensor's memory, which holds the words of the base.
    scratch_nbytes
        As of `Decoding`.
    verify
        Whether CRC-32s are computed, for `check` to compare.
    """

    def __init__(
        self,
        runtime: Runtime,
        portion: Portion,
        payloads: list[int],
        words: int,
        scratch_nbytes: int,
        verify: bool,
    ) -> None:
        self._portion, t, lists = portion, portion.lists.t, portion.lists.segments
        word_nbytes, n_words = t.dtype.word_nbytes, int(lists.n_listed.sum())
        sizes = int(lists.n_gaps.sum()), n_words * word_nbytes, n_words * word_nbytes
        self._kept = gaps, listed, others = [runtime.empty(n) for n in sizes]
        at, to_others, to_gaps = map(runtime.address, (listed, others, gaps))
        words += portion.word_offset
        jobs = [
            WorkItem(portion.gaps.plan, to_gaps, payloads[0]),
            WorkItem(portion.words.plan, at, payloads[1]),
        ]
        self._records = self._sums = None
        if verify:
            self._records = crc32_records(runtime, [(j.payload, j.plan.offsets) for j in jobs])
        self._decoding = Decoding(runtime, jobs, scratch_nbytes)
        self._decoding.queue()
        self._places = sparse.PendingPlaces(
            runtime, gaps, lists.n_gaps, lists.n_listed, lists.starts, lists.sizes
        )
        places = self._places.places
        sparse.take(runtime, words, places, word_nbytes, to_others)
        add_base(runtime, at, to_others, others.size, word_nbytes, t.difference)
        if verify:
            self._sums = crc32_records(runtime, [(at, lists.ends() * word_nbytes)])
        sparse.put(runtime, words, places, word_nbytes, at)

    def check(self) -> None:
        """Wait, on the same stream, and check everything, in the order of `add_lists` of
        `wcodec.codec.sparse`.

        Raises
        ------
        DecodeError
            As `add_lists`.
        """
        portion, lists, first = self._portion, self._portion.lists, 0
        status = self._decoding.status()
        found = None if self._records is None else self._records.result()
        assert lists.t.lists is not None
        for t, part in zip(lists.t.lists.parts, (portion.gaps, portion.words), strict=True):
            of = slice(first, first + part.ids.size)
            crcs = t.segment_crc32[part.ids] if found is None else found[of]
            check_segments(t, part.ids, part.starts, status[of], crcs)
            first = of.stop
        lists.check_places(self._places.right())
        if self._sums is not None:
            lists.check_words(self._sums.result() == lists.segments.words_crc32)
